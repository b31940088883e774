#include "daemon/util/metrics.h"

struct metrics metrics;
