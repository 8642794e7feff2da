"""The words and sentences of the stories (syntax: see grammar.py).

Fields of a hero: name, kind, she/he, She/He, her/him, her/his. Two options of a rule never begin alike and go
on alike, so that each choice can be told from the text.
"""

from lm.data.grammar import Options

RULES: dict[str, Options] = {
    "story": ("{beginning}\n{plot}\n{ending}",),
    # -- who ------------------------------------------------------------------------------------------------------
    "hero": (
        "Mia|girl|she|She|her|her",
        "Lily|girl|she|She|her|her",
        "Anna|girl|she|She|her|her",
        "Rosie|girl|she|She|her|her",
        "Ben|boy|he|He|him|his",
        "Tom|boy|he|He|him|his",
        "Max|boy|he|He|him|his",
        "Sam|boy|he|He|him|his",
        "Hazel|rabbit|she|She|her|her",
        "Pip|mouse|he|He|him|his",
        "Bruno|bear|he|He|him|his",
        "Daisy|duck|she|She|her|her",
        "Rusty|fox|he|He|him|his",
        "Nell|kitten|she|She|her|her",
        "Toby|puppy|he|He|him|his",
        "Willow|deer|she|She|her|her",
    ),
    "helper": (
        "Grandma",
        "Mr. Hill",
        "the old owl",
        "the wise turtle",
        "the baker",
        "the tall farmer",
        "the gray goose",
        "the friendly bee",
    ),
    "size": ("little", "small", "young", "cheerful", "curious", "gentle"),
    # -- how it begins ---------------------------------------------------------------------------------------------
    "beginning": (
        ("Once upon a time there was a {size} {who=hero.1} named {who=hero}. {trait}", 4),
        ("Once there lived a {size} {who=hero.1} whose name was {who=hero}. {trait}", 2),
        ("In a {home} there lived a {size} {who=hero.1} named {who=hero}. {trait}", 3),
    ),
    "home": (
        "cozy house",
        "tiny village",
        "green valley",
        "quiet town",
        "house near the sea",
        "hut under the big tree",
    ),
    "trait": (
        "{who=hero.3} loved to {hobby} and to {hobby_too}.",
        "{who=hero.3} was {virtue}, and everyone liked {who=hero.4}.",
        "Every day {who=hero.2} liked to {hobby}.",
        "{who=hero.3} had a big smile and a {heart} heart.",
    ),
    "hobby": ("sing", "dance", "draw", "climb trees", "pick flowers", "tell jokes", "swim", "count the stars"),
    "hobby_too": ("play", "jump", "paint", "run in the grass", "bake cakes", "look at the clouds"),
    "virtue": ("kind", "brave", "clever", "polite", "funny", "very patient"),
    "heart": ("warm", "brave", "golden", "kind"),
    # -- when and where --------------------------------------------------------------------------------------------
    "day": (
        "sunny morning",
        "warm afternoon",
        "windy day",
        "spring morning",
        "cold winter day",
        "bright summer day",
        "quiet evening",
    ),
    "place": (
        "in the garden",
        "at the park",
        "by the river",
        "on the hill",
        "in the forest",
        "at the farm",
        "near the lake",
        "on the beach",
        "in the meadow",
    ),
    # -- what happens ----------------------------------------------------------------------------------------------
    "plot": (
        "{lost}",
        "{stuck}",
        "{afraid}",
        "{broken}",
        "{friendless}",
        "{gift}",
    ),
    "color": ("red", "blue", "green", "yellow", "shiny", "purple"),
    "thing": ("ball", "kite", "boat", "drum", "hat", "doll", "bell", "scarf"),
    "sad": (
        "{who=hero} was very sad.",
        "A big tear rolled down {who=hero.5} cheek.",
        "{who=hero.3} sat down and began to cry.",
        '"Oh no!" cried {who=hero}.',
    ),
    "meets": (
        "Then {help=helper} came by.",
        "Just then {who=hero.2} met {help=helper}.",
        "Luckily, {help=helper} heard {who=hero.4}.",
        "Soon {help=helper} saw {who=hero.4} and came closer.",
    ),
    "asks": (
        '"What is wrong?" asked {help=helper}.',
        '"Why do you look so sad?" asked {help=helper}.',
        '"Can I help you?" said {help=helper}.',
    ),
    "thanks": (
        '"Thank you so much!" said {who=hero}.',
        "{who=hero} gave {help=helper} a big hug.",
        "{who=hero} laughed and clapped {who=hero.5} hands.",
        '"You are the best friend in the world!" said {who=hero}.',
    ),
    "lost": (
        "One {day}, {who=hero} took {who=hero.5} {color=color} {thing=thing} and went to play {place=place}. "
        "{lost_how} {sad} {meets} {asks}\n{lost_tells} {lost_found} {thanks}",
    ),
    "lost_how": (
        "But after a while the {thing=thing} was gone.",
        "{who=hero.3} ran so fast that the {thing=thing} fell down, and {who=hero.2} did not see it.",
        "Suddenly a strong wind blew the {thing=thing} away.",
        "A silly bird took the {thing=thing} and flew off with it.",
    ),
    "lost_tells": (
        '"I lost my {color=color} {thing=thing}," said {who=hero}.',
        "{who=hero} told {help=helper} about the {color=color} {thing=thing}.",
    ),
    "lost_found": (
        "They looked everywhere {place=place}, and at last they found it under a {under}.",
        "Together they looked behind every {under}, and there was the {thing=thing}!",
        '"I know where it is," said {help=helper}, and pulled the {thing=thing} out of a {under}.',
    ),
    "under": ("bush", "big leaf", "wooden box", "pile of hay", "rock", "basket"),
    "stuck": (
        "One {day}, {who=hero} was {place=place} and saw a {color=color} {fruit=fruit} high up in a tree. {stuck_want} "
        "{stuck_try} {sad} {meets} {asks}\n{stuck_tells} {stuck_help} {thanks}",
    ),
    "fruit": ("apple", "pear", "plum", "balloon", "feather", "lantern"),
    "stuck_want": (
        "{who=hero.3} wanted to have the {fruit=fruit} more than anything.",
        '"What a pretty {fruit=fruit}!" {who=hero.2} said. "I want to take it home."',
    ),
    "stuck_try": (
        "{who=hero.3} jumped and jumped, but the {fruit=fruit} was too high.",
        "{who=hero.3} tried to climb up, but the tree was too {smooth}.",
        "{who=hero.3} threw a stick, but it missed.",
    ),
    "smooth": ("tall", "smooth", "wet"),
    "stuck_tells": (
        '"I can not reach the {fruit=fruit}," said {who=hero}.',
        "{who=hero} pointed up at the {fruit=fruit}.",
    ),
    "stuck_help": (
        "So {help=helper} brought a {ladder}, and {who=hero} could reach it.",
        '"Stand on my shoulders," said {help=helper}, and that was high enough.',
        "They shook the tree together until the {fruit=fruit} fell into the grass.",
    ),
    "ladder": ("ladder", "long rope", "chair", "big box"),
    "afraid": (
        "One {day}, {who=hero} walked home alone and heard a {noise} noise {place=place}. {afraid_feel} {afraid_hide} "
        "{meets} {asks}\n{afraid_tells} {afraid_look} {thanks}",
    ),
    "noise": ("loud", "strange", "scary", "deep"),
    "afraid_feel": (
        '"Is it a monster?" {who=hero.2} whispered.',
        "{who=hero} was so scared that {who=hero.2} could not move.",
        "The noise came closer and closer.",
    ),
    "afraid_hide": (
        "{who=hero.3} hid behind a {under}.",
        "{who=hero.3} closed {who=hero.5} eyes and counted to {number}.",
    ),
    "number": ("three", "five", "ten"),
    "afraid_tells": (
        '"There is something big out there," said {who=hero}.',
        "{who=hero} told {help=helper} about the noise.",
    ),
    "afraid_look": (
        "Side by side they went to look, and it was only a {animal} that wanted to play.",
        '"Do not be afraid," said {help=helper}. "It is just a {animal} having a bath."',
        "They took a light and found a {animal} that was snoring in the grass.",
    ),
    "animal": ("frog", "cow", "sheep", "pony", "goat", "pig"),
    "broken": (
        "One {day}, {who=hero} built a {color=color} {toy=toy} all by {who=hero.4}self. {broken_how} {sad} {meets} "
        "{asks}\n{broken_tells} {broken_fix} {thanks}",
    ),
    "toy": ("castle", "robot", "bridge", "wagon", "tower", "ship"),
    "broken_how": (
        "But a clumsy {animal} stepped on the {toy=toy}, and it broke.",
        "Then the rain came, and the {toy=toy} fell apart.",
        "When it was almost ready, the {toy=toy} fell over with a loud crash.",
    ),
    "broken_tells": (
        '"My {toy=toy} is broken," said {who=hero}.',
        "{who=hero} showed {help=helper} the broken {toy=toy}.",
    ),
    "broken_fix": (
        "They worked all day with {tools}, and the new {toy=toy} was even better.",
        '"Let us try again, step by step," said {help=helper}, and soon the {toy=toy} stood strong.',
        "So {help=helper} found some {tools}, and together they fixed the {toy=toy}.",
    ),
    "tools": ("wood and nails", "glue and paper", "old stones", "rope and tape"),
    "friendless": (
        "One {day}, {who=hero} saw a new {animal=animal} {place=place}. The {animal=animal} was all alone. "
        "{friend_want} {friend_shy} {meets} {asks}\n{friend_tells} {friend_do} {thanks}",
    ),
    "friend_want": (
        "{who=hero} wanted to be friends.",
        '"I would like to play with you," thought {who=hero}.',
    ),
    "friend_shy": (
        "But {who=hero} was too shy to say hello.",
        "But the {animal=animal} ran away.",
        "But nobody knew what to say.",
    ),
    "friend_tells": (
        '"I do not know how to make friends," said {who=hero}.',
        "{who=hero} told {help=helper} about the new {animal=animal}.",
    ),
    "friend_do": (
        '"Just share your {food}," said {help=helper}. So {who=hero} did, and the {animal=animal} smiled.',
        "So {help=helper} asked the {animal=animal} to join them for a game of {game}.",
        "Together they sang a happy song, and the {animal=animal} came to dance.",
    ),
    "food": ("cookies", "bread", "berries", "soup", "cake"),
    "game": ("tag", "hide and seek", "catch"),
    "gift": (
        "One {day}, {who=hero} wanted to make {dish=dish} for {who=hero.5} {family=family}. {gift_start} {gift_fail} "
        "{sad} {meets} {asks}\n{gift_tells} {gift_help} {thanks}",
    ),
    "dish": ("a cake|cake", "a pie|pie", "some soup|soup", "some bread|bread", "a pizza|pizza"),
    "family": ("mother", "father", "sister", "brother", "best friend"),
    "gift_start": (
        "{who=hero.3} put everything into a big bowl and stirred.",
        "{who=hero.3} worked in the kitchen and sang a song.",
    ),
    "gift_fail": (
        "But the {dish=dish.1} got burned and smelled bad.",
        "But the bowl fell on the floor, and everything spilled.",
        "But there was no {missing} left.",
    ),
    "missing": ("sugar", "milk", "butter", "honey"),
    "gift_tells": (
        '"I wanted to surprise my {family=family}," said {who=hero}.',
        "{who=hero} told {help=helper} about the {dish=dish.1}.",
    ),
    "gift_help": (
        "So {help=helper} helped {who=hero.4}, and the new {dish=dish.1} tasted wonderful.",
        '"I have everything you need," said {help=helper}, and they ran to get it.',
        "They started again together, and this time it went well.",
    ),
    # -- how it ends -----------------------------------------------------------------------------------------------
    "ending": (
        "{who=hero} {went_home}. {moral}",
        "That night {who=hero} slept well. {moral}",
        "From that day on, {who=hero} and {help=helper} were good friends. {moral}",
    ),
    "went_home": ("went home with a happy smile", "danced all the way home", "told everyone the story at dinner"),
    "moral": (
        "{who=hero.3} had learned that {lesson}.",
        "And {who=hero.2} never forgot that {lesson}.",
        "The end.",
    ),
    "lesson": (
        "it is good to ask for help",
        "friends make everything better",
        "you should never give up",
        "a kind word can change a day",
        "sharing makes us happy",
        "being brave means trying again",
    ),
}
