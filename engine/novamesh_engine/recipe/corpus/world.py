"""The facts of the closed world, as data.

Rules: plain facts only, which nobody owns; one accepted spelling each. How they are asked is in
`facts`.
"""

from __future__ import annotations

from typing import Final


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`left:right; left:right` as pairs."""
    rows = " ".join(text.split()).split("; ")
    return tuple((row.split(":")[0].strip(), row.split(":")[1].strip()) for row in rows)


CAPITALS: Final = _pairs(
    """Afghanistan:Kabul; Albania:Tirana; Algeria:Algiers; Andorra:Andorra la Vella; Angola:Luanda;
    Argentina:Buenos Aires; Armenia:Yerevan; Australia:Canberra; Austria:Vienna; Azerbaijan:Baku;
    Bahrain:Manama; Bangladesh:Dhaka; Barbados:Bridgetown; Belarus:Minsk; Belgium:Brussels;
    Belize:Belmopan; Benin:Porto-Novo; Bhutan:Thimphu; Bolivia:Sucre; Botswana:Gaborone;
    Brazil:Brasilia; Bulgaria:Sofia; Burkina Faso:Ouagadougou; Cambodia:Phnom Penh;
    Cameroon:Yaounde; Canada:Ottawa; Chad:N'Djamena; Chile:Santiago; China:Beijing;
    Colombia:Bogota; Costa Rica:San Jose; Croatia:Zagreb; Cuba:Havana; Cyprus:Nicosia;
    Denmark:Copenhagen; Ecuador:Quito; Egypt:Cairo; Eritrea:Asmara; Estonia:Tallinn;
    Ethiopia:Addis Ababa; Fiji:Suva; Finland:Helsinki; France:Paris; Gabon:Libreville;
    Georgia:Tbilisi; Germany:Berlin; Ghana:Accra; Greece:Athens; Guatemala:Guatemala City;
    Guinea:Conakry; Guyana:Georgetown; Haiti:Port-au-Prince; Honduras:Tegucigalpa;
    Hungary:Budapest; Iceland:Reykjavik; India:New Delhi; Indonesia:Jakarta; Iran:Tehran;
    Iraq:Baghdad; Ireland:Dublin; Italy:Rome; Jamaica:Kingston; Japan:Tokyo; Jordan:Amman;
    Kazakhstan:Astana; Kenya:Nairobi; Kuwait:Kuwait City; Kyrgyzstan:Bishkek; Laos:Vientiane;
    Latvia:Riga; Lebanon:Beirut; Liberia:Monrovia; Libya:Tripoli; Lithuania:Vilnius;
    Luxembourg:Luxembourg; Madagascar:Antananarivo; Malawi:Lilongwe; Malaysia:Kuala Lumpur;
    Mali:Bamako; Malta:Valletta; Mauritania:Nouakchott; Mexico:Mexico City; Moldova:Chisinau;
    Monaco:Monaco; Mongolia:Ulaanbaatar; Montenegro:Podgorica; Morocco:Rabat; Mozambique:Maputo;
    Myanmar:Naypyidaw; Namibia:Windhoek; Nepal:Kathmandu; New Zealand:Wellington;
    Nicaragua:Managua; Niger:Niamey; Nigeria:Abuja; North Korea:Pyongyang; Norway:Oslo;
    Oman:Muscat; Pakistan:Islamabad; Panama:Panama City; Paraguay:Asuncion; Peru:Lima;
    Poland:Warsaw; Portugal:Lisbon; Qatar:Doha; Romania:Bucharest; Russia:Moscow; Rwanda:Kigali;
    Saudi Arabia:Riyadh; Senegal:Dakar; Serbia:Belgrade; Sierra Leone:Freetown;
    Slovakia:Bratislava; Slovenia:Ljubljana; Somalia:Mogadishu; South Korea:Seoul; Spain:Madrid;
    Sri Lanka:Colombo; Sudan:Khartoum; Suriname:Paramaribo; Sweden:Stockholm; Switzerland:Bern;
    Syria:Damascus; Taiwan:Taipei; Tajikistan:Dushanbe; Tanzania:Dodoma; Thailand:Bangkok;
    Togo:Lome; Tunisia:Tunis; Turkey:Ankara; Turkmenistan:Ashgabat; Uganda:Kampala; Ukraine:Kyiv;
    United Arab Emirates:Abu Dhabi; United Kingdom:London; United States:Washington;
    Uruguay:Montevideo; Uzbekistan:Tashkent; Venezuela:Caracas; Vietnam:Hanoi; Yemen:Sanaa;
    Zambia:Lusaka; Zimbabwe:Harare"""
)
CONTINENTS: Final = _pairs(
    """Germany:Europe; France:Europe; Italy:Europe; Spain:Europe; Poland:Europe; Norway:Europe;
    Greece:Europe; Portugal:Europe; Sweden:Europe; Austria:Europe; Hungary:Europe; Ireland:Europe;
    China:Asia; Japan:Asia; India:Asia; Thailand:Asia; Vietnam:Asia; Nepal:Asia; Iran:Asia;
    Mongolia:Asia; Pakistan:Asia; Malaysia:Asia; Kenya:Africa; Egypt:Africa; Nigeria:Africa;
    Ghana:Africa; Mali:Africa; Chad:Africa; Morocco:Africa; Senegal:Africa; Uganda:Africa;
    Zambia:Africa; Brazil:South America; Peru:South America; Chile:South America;
    Argentina:South America; Bolivia:South America; Colombia:South America;
    Canada:North America; Mexico:North America; Cuba:North America; Panama:North America;
    United States:North America; Australia:Oceania; New Zealand:Oceania; Fiji:Oceania"""
)
ELEMENTS: Final = _list(
    """Hydrogen:H Helium:He Lithium:Li Beryllium:Be Boron:B Carbon:C Nitrogen:N Oxygen:O Fluorine:F
    Neon:Ne Sodium:Na Magnesium:Mg Aluminium:Al Silicon:Si Phosphorus:P Sulfur:S Chlorine:Cl
    Argon:Ar Potassium:K Calcium:Ca Scandium:Sc Titanium:Ti Vanadium:V Chromium:Cr Manganese:Mn
    Iron:Fe Cobalt:Co Nickel:Ni Copper:Cu Zinc:Zn Gallium:Ga Germanium:Ge Arsenic:As Selenium:Se
    Bromine:Br Krypton:Kr Rubidium:Rb Strontium:Sr Yttrium:Y Zirconium:Zr Niobium:Nb
    Molybdenum:Mo Technetium:Tc Ruthenium:Ru Rhodium:Rh Palladium:Pd Silver:Ag Cadmium:Cd
    Indium:In Tin:Sn Antimony:Sb Tellurium:Te Iodine:I Xenon:Xe"""
)
HEAVY_ELEMENTS: Final = _list(
    """Caesium:Cs Barium:Ba Tungsten:W Platinum:Pt Gold:Au Mercury:Hg Lead:Pb Bismuth:Bi Radon:Rn
    Radium:Ra Thorium:Th Uranium:U Plutonium:Pu"""
)
PLANETS: Final = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS: Final = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)  # fmt: skip
UNITS: Final = (
    ("minute", "second", 60), ("hour", "minute", 60), ("day", "hour", 24), ("week", "day", 7),
    ("year", "month", 12), ("year", "day", 365), ("year", "week", 52), ("decade", "year", 10),
    ("century", "year", 100), ("metre", "centimetre", 100), ("kilometre", "metre", 1000),
    ("centimetre", "millimetre", 10), ("metre", "millimetre", 1000), ("kilogram", "gram", 1000),
    ("gram", "milligram", 1000), ("tonne", "kilogram", 1000), ("litre", "millilitre", 1000),
    ("foot", "inch", 12), ("yard", "foot", 3), ("pound", "ounce", 16), ("byte", "bit", 8),
    ("dozen", "egg", 12), ("gallon", "quart", 4), ("hectare", "square metre", 10000),
)  # fmt: skip
PLURAL_UNITS: Final = {"century": "centuries", "foot": "feet", "inch": "inches"}
OPPOSITES: Final = _pairs(
    """hot:cold; big:small; up:down; left:right; day:night; black:white; fast:slow; old:young;
    tall:short; hard:soft; light:dark; open:closed; wet:dry; full:empty; early:late; rich:poor;
    happy:sad; good:bad; high:low; near:far; strong:weak; thick:thin; wide:narrow; clean:dirty;
    loud:quiet; first:last; true:false; push:pull; buy:sell; win:lose; start:stop; love:hate;
    sweet:sour; sharp:blunt; deep:shallow; heavy:light; inside:outside; above:below; before:after;
    cheap:expensive; easy:difficult; friend:enemy; question:answer; north:south; east:west"""
)
YOUNG: Final = _pairs(
    """dog:puppy; cat:kitten; cow:calf; horse:foal; sheep:lamb; pig:piglet; goat:kid; hen:chick;
    duck:duckling; goose:gosling; lion:cub; bear:cub; frog:tadpole; deer:fawn; kangaroo:joey;
    swan:cygnet; eagle:eaglet; owl:owlet"""
)
LEGS: Final = (
    ("dog", 4), ("cat", 4), ("horse", 4), ("cow", 4), ("spider", 8), ("ant", 6), ("bee", 6),
    ("bird", 2), ("human", 2), ("snake", 0), ("frog", 4), ("beetle", 6), ("scorpion", 8),
    ("chicken", 2), ("fish", 0), ("elephant", 4), ("octopus", 8), ("butterfly", 6),
)  # fmt: skip
SIDES: Final = (
    ("triangle", 3), ("square", 4), ("rectangle", 4), ("pentagon", 5), ("hexagon", 6),
    ("heptagon", 7), ("octagon", 8), ("nonagon", 9), ("decagon", 10),
)  # fmt: skip
SINGLES: Final = (
    ("largest planet", "Jupiter"), ("smallest planet", "Mercury"), ("hottest planet", "Venus"),
    ("largest ocean", "the Pacific"), ("highest mountain", "Mount Everest"),
    ("largest continent", "Asia"), ("smallest continent", "Oceania"),
    ("largest animal", "the blue whale"), ("tallest animal", "the giraffe"),
    ("fastest land animal", "the cheetah"), ("largest land animal", "the elephant"),
    ("longest river in Africa", "the Nile"), ("longest river in South America", "the Amazon"),
    ("largest hot desert", "the Sahara"), ("nearest star", "the Sun"),
    ("colour of the sky", "blue"), ("colour of grass", "green"), ("colour of snow", "white"),
    ("colour of blood", "red"), ("colour of a ripe banana", "yellow"), ("colour of coal", "black"),
    ("freezing point of water", "0 degrees Celsius"),
    ("boiling point of water", "100 degrees Celsius"), ("chemical formula of water", "H2O"),
    ("main gas in the air", "nitrogen"), ("hardest natural material", "diamond"),
    ("first letter of the alphabet", "A"), ("last letter of the alphabet", "Z"),
    ("smallest prime number", "2"), ("square root of 144", "12"), ("square root of 81", "9"),
    ("square root of 64", "8"), ("square root of 100", "10"), ("square root of 49", "7"),
    ("red planet", "Mars"), ("satellite of the Earth", "the Moon"),
    ("star at the centre of our solar system", "the Sun"), ("largest bird", "the ostrich"),
    ("shortest month", "February"), 
    ("last month of the year", "December"),
)  # fmt: skip
COUNTS: Final = (
    ("days are there in a leap year", "There are 366 days in a leap year."),
    ("planets are in the solar system", "There are 8 planets in the solar system."),
    ("continents are there", "There are 7 continents."),
    ("letters are in the alphabet", "There are 26 letters in the alphabet."),
    ("fingers does a hand have", "A hand has 5 fingers."),
    ("wheels does a car have", "A car has 4 wheels."),
    ("wheels does a bicycle have", "A bicycle has 2 wheels."),
    ("colours are in a rainbow", "There are 7 colours in a rainbow."),
    ("seasons are there", "There are 4 seasons."),
    ("sides does a cube have", "A cube has 6 sides."),
    ("strings does a guitar have", "A guitar has 6 strings."),
    ("strings does a violin have", "A violin has 4 strings."),
    ("legs does a chair have", "A chair has 4 legs."),
    ("players are in a football team", "A football team has 11 players."),
    ("degrees are in a circle", "There are 360 degrees in a circle."),
    ("hearts does an octopus have", "An octopus has 3 hearts."),
)
