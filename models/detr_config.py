"""DETR's configuration, apart from the model so that command lines know it without PyTorch."""

DETR_CONFIG = {
    "backbone": "resnet50",
    "dilation": False,
    "position_embedding": "sine",
    "temperature": 10000.0,
    "position_in_features": False,
    "hidden_dim": 256,
    "nheads": 8,
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "dropout": 0.1,
    "num_queries": 100,
    "num_classes": 91,
    "pre_norm": False,
    "aux_loss": True,
    "set_cost_class": 1.0,
    "set_cost_bbox": 5.0,
    "set_cost_giou": 2.0,
    "ce_loss_coef": 1.0,
    "bbox_loss_coef": 5.0,
    "giou_loss_coef": 2.0,
    "eos_coef": 0.1,
    "norm": "frozen",
    "stages": 4,
    "box_overlap": "giou",
    "image_size": 512,
    "pad_square": False,
    "person_label": 1,
}
"""The official release's arguments and defaults. Added to them:

norm: frozen (BatchNorm with fixed statistics) or bn.
stages: number of the ResNet's stages that are kept.
temperature: of the position embedding, 10,000 in the release; small feature maps need less.
position_in_features: add the position embedding to the values of attention too, not to queries and keys alone; a
    detector trained from scratch learns to localise much sooner with it.
box_overlap: giou or iou, in the loss and in matching.
image_size: longer side in pixels of the images that the detector was trained for.
pad_square: it was trained on images padded to squares, and normalises its boxes by them.
person_label: the class of people, as in COCO.
"""
