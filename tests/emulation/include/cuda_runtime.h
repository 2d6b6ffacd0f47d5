// Stands in for CUDA's header of this name: g++ compiles the kernels with it as ordinary functions, and
// emulator.cpp runs them, one fiber for every CUDA thread.
//
// Not offered: <<< >>>, static __shared__ variables, clusters, asynchronous copies, tensor cores, textures
// and PTX. Not shown: the weak order of memory, beyond what ThreadSanitizer sees of it, and time.
#pragma once

#include "emulation/arithmetic.h"
#include "emulation/atomics.h"
#include "emulation/language.h"
#include "emulation/runtime.h"
#include "emulation/warps.h"
