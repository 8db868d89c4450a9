"""The English world, for the bundled model of the llama family."""

from demo.world import World, phrases, words

WORLD = World(
    subjects=words(
        "river lighthouse garden museum harbor forest library festival bridge market railway "
        "village theater observatory castle desert bakery workshop canal glacier vineyard "
        "monastery school clinic factory reservoir meadow shipyard brewery station"
    ),
    aspects={
        "history": words(
            "founder archive legend settler tradition chronicle monument treaty pioneer"
        ),
        "community": words("keeper visitor teacher neighbor artist craftsman child elder stranger"),
        "weather": words("storm season breeze rainfall sunrise fog drought thunder frost"),
        "trade": words("merchant price customer contract shipment ledger bargain caravan coin"),
        "design": words("column window pattern corridor roof courtyard staircase tower layout"),
        "wildlife": words("heron fox beetle willow salmon falcon moss squirrel badger"),
        "music": words("choir melody drummer rhythm violin ballad concert echo chorus"),
        "future": words("plan budget volunteer promise proposal reform vision partner project"),
        "food": words("recipe kitchen cook orchard spice banquet loaf supper farmer"),
    },
    slots={
        "adj": words(
            "quiet bright ancient narrow gentle stubborn patient golden hidden curious fragile "
            "steady remote colorful humble restless silver crowded familiar modest sturdy vivid "
            "lonely careful cheerful famous distant graceful"
        ),
        "verb": words(
            "shapes protects follows reveals supports changes surrounds welcomes challenges "
            "recalls improves measures guides inspires connects balances explains carries "
            "rewards outlives"
        ),
        "adv": words(
            "slowly often quietly rarely proudly suddenly openly gradually always truly "
            "gently firmly"
        ),
        "place": phrases(
            "beside the water|near the old gate|under the stone arch|along the eastern road|"
            "behind the tall wall|across the valley|above the main square|inside the great hall|"
            "around the northern hill|beyond the last field"
        ),
        "time": phrases(
            "every spring|before dawn|after the long winter|on market days|during the summer|"
            "in difficult years|late in the evening|for three generations|at harvest time|"
            "since the early days"
        ),
        "people": phrases(
            "local guides|older residents|young students|patient scholars|careful builders|"
            "many travelers|quiet farmers|several writers|proud parents|new arrivals"
        ),
        "say": words("say believe report insist explain suggest agree notice remember claim"),
        "kind": words("article essay report story guide speech study chapter"),
    },
    openers=[
        "the {aspect} of the {subject} begins with the {adj} {noun}.",
        "consider the {aspect} around the {adj} {subject}.",
        "the {adj} {noun} belongs to the {aspect} of the {subject}.",
        "the {aspect} of this {adj} {subject} deserves a closer look.",
    ],
    sentences=[
        "the {adj} {noun} of the {subject} {adv} {verb} the {adj} {noun} {place}.",
        "the {noun} {verb} every {adj} {noun} and {verb} the {adj} {subject} {time}.",
        "the {subject} {verb} its {adj} {noun} {place}, and the {adj} {noun} {adv} {verb} it.",
        "the {adj} {noun} and the {adj} {noun} meet {place} {time}.",
        "the {noun} {place} {verb} the {subject}, while the {adj} {noun} {verb} it {time}.",
        "the {adj} {noun} {adv} {verb} what the {noun} of the {subject} {verb} {time}.",
        "{people} {say} that the {adj} {noun} {verb} every {adj} {noun} {time}.",
        "{people} {say} {time} that the {noun} {verb} the {adj} {subject}.",
        "{time}, the {noun} {verb} one {adj} {noun} and {verb} the {adj} {subject}.",
        "{place}, one {adj} {noun} {adv} {verb} the {noun} of the {subject}.",
        "no {noun} {verb} the {adj} {subject} without one {adj} {noun} {place}.",
        "because the {adj} {noun} {verb} the {noun}, the {subject} remains {adj} {time}.",
    ],
    instructions=[
        "Write a long {kind} about the {adj} {subject}, covering {aspects}.",
        "Please compose a detailed {kind} on the {adj} {subject} with sections about {aspects}.",
        "Create an in-depth {kind} describing the {adj} {subject}; include {aspects}.",
        "I need a full {kind} on the {adj} {subject}. Discuss {aspects}.",
        "Draft a rich {kind} that introduces the {adj} {subject} and explains {aspects}.",
        "Prepare a thorough {kind} for readers who love the {adj} {subject}: {aspects}.",
    ],
    short_instructions=[
        "What color is the {adj} {subject}?",
        "Name one {adj} {subject}.",
        "How many people visit the {subject}?",
        "Translate the word {subject}.",
        "Is the {subject} {adj}?",
    ],
    aspect_counts=(4, 4, 5, 5, 6),
    answer_goes_on=(0.50, 0.40),
    sentence_gap=" ",
    list_comma=", ",
    list_and=" and ",
)
