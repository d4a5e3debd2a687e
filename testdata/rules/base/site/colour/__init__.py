NAMES = ["red", "green"]
