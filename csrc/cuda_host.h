// What the ops on a GPU share on the host: errors, the current stream, what is known of a device.
#pragma once

#include "checks.h"
#include "launch.h"

namespace memoir {

void check(cudaError_t error);  // throws

// The stream on which torch queues work for `device` in this thread.
cudaStream_t current_stream(int32_t device);

// Asked once per device, which must be the current one: the answers do not change, and every call needs them.
Gpu gpu_of(int32_t device);

}  // namespace memoir
