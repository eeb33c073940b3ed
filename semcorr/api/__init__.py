"""The public Python API: the readers, networks, matching and scoring of the stages, for programs and notebooks.

    from semcorr import CorrespondenceMatcher, PFWillowDataset, UnifiedBackbone, UnifiedEvaluator, collate

    dataset = PFWillowDataset("PF-dataset", long_side=518)
    matcher = CorrespondenceMatcher(UnifiedBackbone("dinov2"), use_soft_argmax=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate)
    print(UnifiedEvaluator(loader).evaluate(matcher, "dinov2")["overall_keypoint"]["PCK@0.10"])

Keypoints are (x, y) in pixels of the image they come with, which is the resized image in a dataset's items; (0, 0) is
the centre of the top-left pixel. A point p of the original image is at (p + 0.5) * scale - 0.5 in the resized one.
Sizes are (height, width).
"""
