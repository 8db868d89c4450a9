"""The English world, for the bundled model of the llama family."""

from demo.world import LONGEST_PARAGRAPH, Habits, World, words

WORLD = World(
    subjects=words(
        "river lighthouse garden museum harbor forest library festival bridge market railway "
        "village theater observatory castle desert bakery workshop canal glacier vineyard "
        "monastery school clinic factory reservoir meadow shipyard brewery station"
    ),
    aspects={
        "history": words(
            "founder archive legend settler tradition chronicle monument treaty pioneer "
            "ruin diary relic dynasty emblem manuscript"
        ),
        "community": words(
            "keeper visitor teacher neighbor artist craftsman child elder stranger "
            "nurse tailor widow pilgrim captain mayor"
        ),
        "weather": words(
            "storm season breeze rainfall sunrise fog drought thunder frost "
            "blizzard rainbow twilight heatwave cloud tide"
        ),
        "trade": words(
            "merchant price customer contract shipment ledger bargain caravan coin "
            "auction warehouse cargo broker invoice stall"
        ),
        "design": words(
            "column window pattern corridor roof courtyard staircase tower layout "
            "balcony gable mosaic chimney vault doorway"
        ),
        "wildlife": words(
            "heron fox beetle willow salmon falcon moss squirrel badger "
            "otter lizard fern cricket owl hedge"
        ),
        "music": words(
            "choir melody drummer rhythm violin ballad concert echo chorus "
            "flute anthem cellist lullaby trumpet refrain"
        ),
        "progress": words(
            "plan budget volunteer promise proposal reform vision partner project "
            "patent survey deadline charter grant blueprint"
        ),
        "food": words(
            "recipe kitchen cook orchard spice banquet loaf supper farmer "
            "cheese cellar pastry basket oven honey"
        ),
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
        "where": words(
            "nearby outside upstream downtown inland ashore indoors uphill abroad overhead"
        ),
        "when": words(
            "yesterday today tonight lately yearly annually weekly daily sometimes seasonally"
        ),
        "people": words(
            "locals residents students scholars builders travelers farmers writers parents "
            "newcomers"
        ),
        "praise": words(
            "praise defend describe respect admire mention salute remember question paint "
            "imitate trust"
        ),
        "start": words("the one each"),
        "kind": words("article essay report story guide speech study chapter"),
    },
    # Made to be copied by a very small model: each aspect's paragraph begins in its own way, and
    # wherever words could differ, the few before them tell which place in a draft this is.
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
    # Made to be sampled at temperature 0.7, which takes from what may begin in many ways: only
    # three words begin a sentence, so that it keeps up with the end of a paragraph; and what tells
    # the patterns apart are single words, equally likely, so that none crowds out the others.
    sentences=[
        "{start} {adj} {noun} that {people} {praise} {adv} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} that {people} {praise} {when} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} near one {adj} {noun} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} near one {adj} {noun} {adv} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} without its {adj} {noun} {when} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} without its {adj} {noun} {where} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} for {people} {where} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} for {people} {adv} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} like every {adj} {noun} {verb} the {adj} {noun}.",
        "{start} {adj} {noun} like every {adj} {noun} {where} {verb} the {adj} {noun}.",
        "{start} {adj} {subject} {adv} {verb} its {adj} {noun}.",
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
        {0.40: 0.85, 0.60: 0.12, 0.80: 0.03},
        {0.35: 0.80, 0.60: 0.12, 0.80: 0.08},
        most=LONGEST_PARAGRAPH - 1,
    ),
    last_habits=Habits({0.57: 1.0}, {0.50: 0.70, 0.65: 0.30}, most=4),
    sentence_gap=" ",
    list_comma=", ",
    list_and=" and ",
)
