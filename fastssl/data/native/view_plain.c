/* For every machine: vectors of four, which SSE2 and NEON have. */
#define WIDTH 4
#define TARGET
#define RENDER_VIEW fastssl_view_plain
#include "view.h"
