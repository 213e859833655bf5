"""The codes under which LIDC readings are published as DICOM, used for readings and for predictions alike.

Source: the collection DICOM-LIDC-IDRI-Nodules (Fedorov et al. 2020, doi:10.1002/mp.14445) and its converter's tables.
"""

from pydicom.sr.coding import Code

LIDC = "99LIDCQIICR"
"""The collection's own coding scheme."""

CONCEPTS: dict[str, Code] = {
    "malignancy": Code("RID36042", "RadLex", "Malignancy"),
    "subtlety": Code("C45992", "NCIt", "Subtlety score"),
    "internalStructure": Code("200", LIDC, "Internal structure"),
    "calcification": Code("C3672", "NCIt", "Calcification"),
    "sphericity": Code("400", LIDC, "Sphericity"),
    "margin": Code("C25563", "NCIt", "Margin"),
    "lobulation": Code("C62175", "NCIt", "Lobular Pattern"),
    "spiculation": Code("C28749", "NCIt", "Spiculation"),
    "texture": Code("C41144", "NCIt", "Texture"),
    "diameter": Code("81827009", "SCT", "Diameter"),
}
"""What is rated or measured, by key."""

VALUES: dict[str, dict[int, Code]] = {
    "malignancy": {
        1: Code("901", LIDC, "1 out of 5 (Highly Unlikely for Cancer)"),
        2: Code("902", LIDC, "2 out of 5 (Moderately Unlikely for Cancer)"),
        3: Code("903", LIDC, "3 out of 5 (Indeterminate Likelihood)"),
        4: Code("904", LIDC, "4 out of 5 (Moderately Suspicious for Cancer)"),
        5: Code("905", LIDC, "5 out of 5 (Highly Suspicious for Cancer)"),
    },
    "subtlety": {
        1: Code("101", LIDC, "1 out of 5 (Extremely subtle)"),
        2: Code("102", LIDC, "2 out of 5 (Moderately subtle)"),
        3: Code("103", LIDC, "3 out of 5 (Fairly subtle)"),
        4: Code("104", LIDC, "4 out of 5 (Moderately obvious)"),
        5: Code("105", LIDC, "5 out of 5 (Obvious)"),
    },
    "internalStructure": {
        1: Code("C12471", "NCIt", "Soft tissue"),
        2: Code("C25278", "NCIt", "Fluid"),
        3: Code("C12472", "NCIt", "Adipose tissue"),
        4: Code("C73434", "NCIt", "Air"),
    },
    "calcification": {
        1: Code("RID35453", "RadLex", "Popcorn calcification sign"),
        2: Code("302", LIDC, "Laminated appearance"),
        3: Code("RID5741", "RadLex", "Solid appearance"),
        4: Code("304", LIDC, "Non-central appearance"),
        5: Code("RID5827", "RadLex", "Central calcification"),
        6: Code("RID28473", "RadLex", "Absent"),
    },
    "sphericity": {
        1: Code("RID5811", "RadLex", "linear"),
        3: Code("RID5800", "RadLex", "ovoid"),
        5: Code("RID5799", "RadLex", "round"),
    },
    "margin": {
        1: Code("RID5709", "RadLex", "Indistinct margin"),
        5: Code("RID5707", "RadLex", "Circumscribed margin"),
    },
    "lobulation": {
        1: Code("601", LIDC, "1 out of 5 (No lobulation)"),
        5: Code("605", LIDC, "5 out of 5 (Marked lobulation)"),
    },
    "spiculation": {
        1: Code("701", LIDC, "1 out of 5 (No spiculation)"),
        5: Code("705", LIDC, "5 out of 5 (Marked spiculation)"),
    },
    "texture": {
        1: Code("RID50153", "RadLex", "non-solid pulmonary nodule"),
        3: Code("RID50152", "RadLex", "part-solid pulmonary nodule"),
        5: Code("RID50151", "RadLex", "solid pulmonary nodule"),
    },
}
"""Codes with a word of their own; the others are `n out of 5`."""


def value_code(key: str, rating: int) -> Code:
    """The code of one step of a rating's scale.

    Raises:
        KeyError: the scale has no such step.
    """
    own = VALUES[key].get(rating)
    if own is not None:
        return own
    if not 1 <= rating <= 5:
        raise KeyError(f"{key} has no step {rating}")
    return Code(f"00{rating}", LIDC, f"{rating} out of 5")
