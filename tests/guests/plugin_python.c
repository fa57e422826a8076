// The Python module `ulpm`.
#include "../../plugins/python/ulpm.c"
