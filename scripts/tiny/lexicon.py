"""The words of the tiny text: names, things and places that the domains share, and the English-French dictionary."""
# ruff: noqa: E501, SIM905 (a template reads best on one line; word lists are strings, as quotes would double them)

WOMEN = """Mara Lena Ruth Clara Nora Ivy Tessa Greta Hanna Alma Rosa Ines Carla Petra Selma Doris Edith Wanda Zoe Mina
Vera Elsa Judith Olga Freya""".split()
MEN = """Ben Carl Oscar Hugo Peter Simon Felix Anton Jonas Marco Victor Edgar Ralph Tobias Martin Leon Henry Otto Owen
Aaron Walter Dennis Gregor Silas Finn""".split()
SURNAMES = """Keller Brandt Hollis Marsh Pereira Lindqvist Okafor Duval Whitlock Tanaka Moreno Novak Abbott Fisher Harper
Sandoval""".split()
TOWNS = """Ashford Millbrook Westhaven Stonebridge Larkfield Oakdale Redcliff Fernhill Brightwater Kingsley Thornbury
Elmwood Saltmarsh Greyport Hazelton Winterford""".split()

IRREGULAR_PLURALS = dict(
    pair.split(":")
    for pair in """child:children man:men woman:women mouse:mice goose:geese sheep:sheep fish:fish knife:knives
    loaf:loaves leaf:leaves shelf:shelves scarf:scarves wolf:wolves calf:calves foot:feet tooth:teeth potato:potatoes
    tomato:tomatoes ox:oxen deer:deer half:halves fisherman:fishermen thief:thieves piano:pianos""".split()
)

# Things that a person can hold, lose, find, give and hide.
OBJECTS = """key lantern compass ring letter map whistle coin violin watch notebook basket blanket candle mirror locket
flute drum kite puppet button ribbon bottle feather shell telescope knife spoon painting diary scarf hat bell medal clock
umbrella teapot box rope hammer""".split()
MATERIALS = """silver golden tiny ancient faded precious dusty strange plain curious pale dark blue green red black white
yellow purple grey""".split()
PLACES = """mill library bakery chapel lighthouse castle workshop tower barn school theatre museum inn stable greenhouse
brewery monastery boathouse tavern cottage smithy courthouse hall storehouse""".split()
ANIMALS = (
    "dog cat goat horse fox owl crow rabbit donkey goose squirrel pony raven parrot otter puppy lamb kitten".split()
)
JOBS = """baker miller sailor carpenter gardener teacher doctor farmer tailor painter weaver fisherman librarian blacksmith
potter singer clockmaker shepherd cook printer""".split()
GOODS = """apple pear plum lemon egg book pencil marble stamp card candle cup plate chair flower button postcard brick
ticket cookie shirt lamp ball nail bead orange peach onion carrot bottle""".split()
CONTAINERS = "box bag basket crate drawer shelf tray packet jar sack".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COLOURS = "red blue green yellow white black grey brown purple orange".split()

# --- English-French dictionary ------------------------------------------------------------------------------------
# Nouns by class: `english french gender`, where _ stands for a blank; plurals are formed by rule.
NOUNS = {
    "person": """child enfant m, doctor médecin m, teacher professeur m, baker boulanger m, farmer fermier m, girl
        fille f, boy garçon m, woman femme f, man homme m, queen reine f, king roi m, neighbour voisin m,
        sailor marin m, singer chanteuse f, cook cuisinier m, nurse infirmière f, painter peintre m, dancer
        danseuse f, student étudiant m, writer écrivain m, uncle oncle m, aunt tante f, gardener jardinier
        m, soldier soldat m, friend ami m""",
    "animal": """cat chat m, dog chien m, horse cheval m, bird oiseau m, rabbit lapin m, cow vache f, sheep mouton m,
        hen poule f, duck canard m, mouse souris f, fish poisson m, bear ours m, wolf loup m, fox renard m,
        donkey âne m, goat chèvre f, turtle tortue f, frog grenouille f""",
    "food": """bread pain m, apple pomme f, pear poire f, cake gâteau m, soup soupe f, egg œuf m, orange orange f,
        carrot carotte f, onion oignon m, tomato tomate f, potato pomme_de_terre f, lemon citron m, mushroom
        champignon m, salad salade f""",
    "thing": """book livre m, letter lettre f, key clé f, table table f, chair chaise f, lamp lampe f, clock horloge
        f, hat chapeau m, coat manteau m, dress robe f, shirt chemise f, shoe chaussure f, bag sac m, box
        boîte f, bottle bouteille f, plate assiette f, knife couteau m, spoon cuillère f, pencil crayon m,
        picture image f, umbrella parapluie m, bicycle vélo m, car voiture f, boat bateau m, ball balle f,
        ring bague f, watch montre f, mirror miroir m, basket panier m, flower fleur f, stone pierre f, coin
        pièce f, guitar guitare f, candle bougie f, blanket couverture f, map carte f""",
    "place": """house maison f, garden jardin m, kitchen cuisine f, school école f, church église f, castle château
        m, forest forêt f, village village m, street rue f, station gare f, hospital hôpital m, museum musée
        m, library bibliothèque f, field champ m, shop magasin m, bedroom chambre f, hotel hôtel m, theatre
        théâtre m, factory usine f, workshop atelier m, cellar cave f, courtyard cour f, valley vallée f,
        tower tour f""",
    "landmark": """door porte f, window fenêtre f, tree arbre m, river rivière f, lake lac m, wall mur m, bed lit m,
        fountain fontaine f, hill colline f, staircase escalier m, well puits m, bench banc m, gate portail
        m, fireplace cheminée f""",
}
# Adjectives: `english masculine feminine`; those that stand before the noun end with a +.
ADJECTIVES = {
    "any": """small petit petite+, big grand grande+, old vieux vieille+, beautiful beau belle+, pretty joli jolie+,
        black noir noire, white blanc blanche, grey gris grise, strange étrange étrange, dirty sale sale,
        new nouveau nouvelle+, light léger légère, heavy lourd lourde""",
    "person": """young jeune jeune+, happy heureux heureuse, sad triste triste, kind gentil gentille, tired fatigué
        fatiguée, brave courageux courageuse, curious curieux curieuse, proud fier fière, patient patient
        patiente, sick malade malade, polite poli polie""",
    "animal": """brown brun brune, young jeune jeune+, wild sauvage sauvage, calm calme calme, hungry affamé affamée,
        fast rapide rapide, quiet tranquille tranquille, dangerous dangereux dangereuse, curious curieux
        curieuse""",
    "food": """fresh frais fraîche, good bon bonne+, warm chaud chaude, cold froid froide, delicious délicieux
        délicieuse, sweet sucré sucrée""",
    "thing": """red rouge rouge, blue bleu bleue, green vert verte, yellow jaune jaune, expensive cher chère, broken
        cassé cassée, round rond ronde, useful utile utile, fragile fragile fragile, modern moderne moderne""",
    "place": """quiet tranquille tranquille, narrow étroit étroite, dark sombre sombre, clean propre propre, cold
        froid froide, modern moderne moderne, empty vide vide""",
}
ADJECTIVES["landmark"] = (
    "magnificent magnifique magnifique, red rouge rouge, wide large large, green vert verte, round rond ronde"
)
# Transitive verbs: `base third past` and the French verb; irregular ones give je, il, nous, ils and the participle.
TRANSITIVE = {
    "thing": """look_for looks_for looked_for chercher; find finds found trouver; draw draws drew dessiner; hide
        hides hid cacher; carry carries carried porter; clean cleans cleaned nettoyer:nettoie nettoie
        nettoyons nettoient nettoyé; paint paints painted peindre:peins peint peignons peignent peint; show
        shows showed montrer; bring brings brought apporter; forget forgets forgot oublier; buy buys bought
        acheter:achète achète achetons achètent acheté; sell sells sold vendre:vends vend vendons vendent
        vendu; lose loses lost perdre:perds perd perdons perdent perdu; choose chooses chose choisir:choisis
        choisit choisissons choisissent choisi; take takes took prendre:prends prend prenons prennent pris;
        repair repairs repaired réparer; see sees saw voir:vois voit voyons voient vu""",
    "food": """eat eats ate manger; buy buys bought acheter:achète achète achetons achètent acheté; prepare
        prepares prepared préparer; taste tastes tasted goûter; sell sells sold vendre:vends vend vendons
        vendent vendu; bring brings brought apporter""",
    "animal": """see sees saw voir:vois voit voyons voient vu; watch watches watched regarder; hear hears heard
        entendre:entends entend entendons entendent entendu; follow follows followed suivre:suis suit
        suivons suivent suivi; feed feeds fed nourrir:nourris nourrit nourrissons nourrissent nourri; draw
        draws drew dessiner; look_for looks_for looked_for chercher; love loves loved aimer; save saves
        saved sauver; find finds found trouver; lose loses lost perdre:perds perd perdons perdent perdu""",
    "person": """invite invites invited inviter; thank thanks thanked remercier; meet meets met rencontrer; call
        calls called appeler:appelle appelle appelons appellent appelé; listen_to listens_to listened_to
        écouter; help helps helped aider; know knows knew connaître:connais connaît connaissons connaissent
        connu; see sees saw voir:vois voit voyons voient vu; hear hears heard entendre:entends entend
        entendons entendent entendu; follow follows followed suivre:suis suit suivons suivent suivi; admire
        admires admired admirer""",
}
# Intransitive verbs by subject class, all with the auxiliary avoir.
INTRANSITIVE = {
    "person": """work works worked travailler; sing sings sang chanter; dance dances danced danser; wait waits waited
        attendre:attends attend attendons attendent attendu; play plays played jouer; walk walks walked
        marcher; sleep sleeps slept dormir:dors dort dormons dorment dormi; read reads read lire:lis lit
        lisons lisent lu; talk talks talked parler; cry cries cried pleurer; dream dreams dreamed rêver""",
    "animal": """sleep sleeps slept dormir:dors dort dormons dorment dormi; play plays played jouer; run runs ran
        courir:cours court courons courent couru; eat eats ate manger; wait waits waited attendre:attends
        attend attendons attendent attendu; tremble trembles trembled trembler; drink drinks drank
        boire:bois boit buvons boivent bu""",
}
# French forms of the first names: the same names on both sides, with their gender.
FRENCH_NAMES = {
    "f": "Clara Nora Rosa Julie Marie Sophie Louise Camille".split(),
    "m": "Hugo Simon Felix Martin Paul Louis Victor Bruno".split(),
}
WEEKDAYS = dict(
    pair.split(":")
    for pair in "Monday:lundi Tuesday:mardi Wednesday:mercredi Thursday:jeudi Friday:vendredi Saturday:samedi "
    "Sunday:dimanche".split()
)
