//! The queries of the demonstration, each with candidates and their first-stage scores, best first.
//!
//! The scores imitate BM25 and its mistakes. Texts that repeat one word of the query, or use its words in
//! another sense, rank above the answer.

/// A first-stage score, and the text of the document.
pub(super) type Candidate = (f64, &'static str);

/// The queries with their candidates.
pub(super) const QUERIES: &[(&str, &[Candidate])] = &[
    (
        "why do leaves change colour in autumn",
        &[
            (
                14.2,
                "Colour, colour, colour! Our autumn wool comes in every colour of the rainbow, with \
                 buttons in the same colour.",
            ),
            (12.9, "The new timetable changes in autumn; the last bus then leaves at nine."),
            (
                11.7,
                "Many trees change colour in autumn because their leaves stop making chlorophyll. \
                 The green fades, and the yellow that was there all summer shows. Cold nights turn \
                 the leaves of some trees red.",
            ),
            (
                9.8,
                "Rake fallen leaves into a heap and let them rot: after a year, they feed the roses.",
            ),
            (8.1, "A chameleon can change colour within seconds, mostly to show its mood."),
            (
                6.4,
                "Autumn begins when day and night are equally long, around the 23rd of September.",
            ),
            (4.0, "Tea is made of the leaves of a shrub from the mountains of Asia."),
        ],
    ),
    (
        "boil eggs at high altitude",
        &[
            (
                15.6,
                "Eggs from our farm: six eggs, a dozen eggs or a tray of thirty eggs, fresh from the \
                 hens every morning.",
            ),
            (
                13.3,
                "Soft-boiled eggs: let the water boil, put in the eggs, wait six minutes, and cool \
                 them under the tap.",
            ),
            (
                12.8,
                "High boots, high heels and high chairs: the high street has them all at low prices.",
            ),
            (
                12.1,
                "At high altitude, water boils before it is hot enough to cook as usual. Boil eggs \
                 two or three minutes longer in the mountains.",
            ),
            (10.5, "Pilots who fly at high altitude breathe oxygen through a mask."),
            (7.7, "Altitude sickness begins with a headache; go down before it gets worse."),
            (5.2, "In a pressure cooker, beans are done in half the time."),
        ],
    ),
    (
        "animals that live in tide pools",
        &[
            (
                13.9,
                "Swimming pools, paddling pools, whirlpools: we build pools of all sizes and keep \
                 your pools clean.",
            ),
            (
                12.4,
                "Live music by the pool tonight, and a football pool for those who stay at home.",
            ),
            (
                11.8,
                "When the tide goes out, water stays behind between the rocks. In such tide pools \
                 live animals that cling: limpets, sea stars and anemones.",
            ),
            (10.9, "The tide turns about every six hours, pulled by the moon and the sun."),
            (9.2, "Farm animals such as goats and sheep live in herds."),
            (8.8, "Hermit crabs hide in tide pools, in the empty shells of snails."),
            (6.0, "The zoo cares for animals that were found injured on the road."),
        ],
    ),
    (
        "who invented the stethoscope",
        &[
            (
                9.7,
                "Stethoscope sale! A stethoscope for doctors, a stethoscope for nurses, a toy \
                 stethoscope for children.",
            ),
            (
                8.9,
                "Invented words, invented worlds: a writer speaks of how she invented a language \
                 for her novels.",
            ),
            (
                8.4,
                "The French doctor René Laennec invented the stethoscope in 1816: a paper tube at \
                 first, then one of wood.",
            ),
            (6.6, "With a stethoscope one hears whether the valves of the heart close in time."),
            (
                5.1,
                "The telephone was invented more than once, and its patents fought over in court.",
            ),
            (2.3, "The doctor listens to the chest while the patient breathes in and out."),
        ],
    ),
    (
        "bicycle chain keeps slipping",
        &[
            (
                14.8,
                "Gold chains, silver chains, a chain with a pearl: find the chain that suits you in \
                 our jewellery shop.",
            ),
            (13.1, "A chain of supermarkets keeps its prices low by selling bicycles in spring."),
            (
                12.6,
                "If the bicycle chain is slipping under load, it is worn or the sprockets are. A \
                 chain that keeps slipping after it was replaced needs a new cassette as well.",
            ),
            (11.0, "Wear boots with studs to keep from slipping on icy pavements."),
            (
                9.4,
                "Clean a bicycle chain with a brush and a rag, then give each link a drop of oil.",
            ),
            (7.3, "The first bicycle had no pedals; its rider ran along."),
            (5.5, "Children keep slipping down the wet slide."),
        ],
    ),
    (
        "how to remove coffee stains from cotton",
        &[
            (
                16.0,
                "Coffee beans, ground coffee, coffee pods: our coffee is roasted daily, and every \
                 tenth coffee is free.",
            ),
            (13.7, "Cotton bags for coffee, printed by hand; they remove the need for plastic."),
            (
                12.5,
                "Rinse fresh coffee stains with cold water from the back. To remove old stains from \
                 cotton, soak the cloth in water with vinegar before washing.",
            ),
            (11.9, "Red wine stains come out with salt and soda water."),
            (10.2, "Wood stain protects a fence for years; remove old paint before you begin."),
            (8.5, "Cotton is picked by machines that strip the plants row by row."),
            (6.9, "A cup of coffee at noon keeps some people awake at night."),
        ],
    ),
];
