"""The SfM stage: photos in, camera poses and undistorted images out."""
