#include "covector.h"

COVECTOR_API int32_t covector_version(void) { return COVECTOR_VERSION; }
