"""What a run will take, predicted from a chip's data sheet, the network itself and one stated efficiency."""
