"""What CUDA needs on the host, whichever runs the kernels: headers for them, their sources, the device."""
