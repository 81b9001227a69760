"""Lists of images and classes: CSV, TSV and JSON Lines, exports of Label Studio, COCO, and rows in memory."""
