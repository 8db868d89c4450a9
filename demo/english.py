"""The English world, for the bundled model of the llama family."""

from demo.world import Habits, World, phrases, words

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
        "progress": words("plan budget volunteer promise proposal reform vision partner project"),
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
    # Made to be copied by a very small model: each aspect's paragraph begins in its own way, and
    # each sentence ends in words that tell it from the others. So wherever words could differ, the
    # few before them say which place in a draft this is.
    openers={
        "history": "history here begins with the {adj} {noun}.",
        "community": "community life gathers around each {adj} {noun}.",
        "weather": "weather there often brings one {adj} {noun}.",
        "trade": "trade has always needed some {adj} {noun}.",
        "design": "design still answers to every {adj} {noun}.",
        "wildlife": "wildlife nearby lives beside its {adj} {noun}.",
        "music": "music tonight remembers that {adj} {noun}.",
        "progress": "progress came late from another {adj} {noun}.",
        "food": "food was shared under this {adj} {noun}.",
    },
    sentences=[
        "the {adj} {noun} of the {subject} {adv} {verb} the {adj} {noun}.",
        "{time}, the {noun} {verb} the {subject} and the {adj} {noun}.",
        "the {subject} {verb} its {noun} {place}, and {adv} also the {adj} {noun}.",
        "{place}, the {adj} {noun} meets the {adj} {noun}.",
        "the {noun} {place} {verb} the {subject}, while {people} praise the {adj} {noun}.",
        "the {adj} {noun} {adv} {verb} what {time} was left to the {adj} {noun}.",
        "{people} {say} that the {noun} {adv} {verb} every {adj} {noun}.",
        "{people} {say} {time} that the {subject} {verb} one {adj} {noun}.",
        "{time}, one {noun} {verb} the {adj} {subject} and its {adj} {noun}.",
        "{place}, one {adj} {noun} {adv} {verb} the {adj} {noun}.",
        "no {noun} {verb} the {adj} {subject} {place} without the {adj} {noun}.",
        "because the {adj} {noun} {verb} the {noun}, the {subject} {time} keeps its {adj} {noun}.",
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
    length_demands=[
        "{instruction} Its length: {constraint}.",
        "{instruction} Write it at this length: {constraint}.",
        "At this length: {constraint}. {instruction}",
    ],
    aspect_counts=(4, 4, 5, 5, 6),
    habits=Habits(
        {0: 0.30, 1: 0.58, 2: 0.08, 4: 0.03, 8: 0.01}, {0.35: 0.80, 0.60: 0.12, 0.80: 0.08}
    ),
    # The last phase overstates what is rarer: at temperature 0.7 a model keeps to the likeliest,
    # and that is the end of a paragraph, since a further sentence may begin in many ways.
    last_habits=Habits({0: 0.40, 1: 0.60}, {0.50: 0.60, 0.65: 0.30, 0.80: 0.10}),
    sentence_gap=" ",
    list_comma=", ",
    list_and=" and ",
)
