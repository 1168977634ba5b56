#!/bin/sh
# unpack_cuda.sh DEB WHEELS TO: a CUDA_HOME in folder TO, of the compiler in Debian's package nvidia-cuda-toolkit and of the
# headers and the runtime library in NVIDIA's wheels, unpacked in folder WHEELS.
set -eu
deb=$1 wheels=$2 to=$3
unpacked=$(mktemp -d)
dpkg-deb -x "$deb" "$unpacked"
mkdir -p "$to/bin" "$to/include" "$to/lib64" "$to/nvvm"
for program in cudafe++ cuobjdump fatbinary nvlink ptxas; do
    cp "$unpacked/usr/bin/$program" "$to/bin/"
done
# nvcc itself and not Debian's wrapper, which looks for the compiler in /usr/lib.
for part in cicc crt nvcc; do
    cp -r "$unpacked/usr/lib/nvidia-cuda-toolkit/bin/$part" "$to/bin/"
done
cp -r "$unpacked/usr/lib/nvidia-cuda-toolkit/libdevice" "$to/nvvm/"
rm -rf "$unpacked"
for wheel in cuda_cccl cuda_nvcc cuda_runtime; do
    cp -r "$wheels/$wheel/include/." "$to/include/"
done
cp "$wheels/cuda_runtime/lib/libcudart.so.12" "$to/lib64/"
ln -s libcudart.so.12 "$to/lib64/libcudart.so"
# Read by nvcc at every start; _HERE_ is the folder of nvcc.
cat > "$to/bin/nvcc.profile" <<'PROFILE'
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
PROFILE
"$to/bin/nvcc" --version
