/* The generated messages, with their header's warnings kept out of ours. */
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include "proto/kvtier.pb-c.h"
#pragma GCC diagnostic pop
