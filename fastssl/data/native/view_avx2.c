#if defined(__x86_64__)
#define WIDTH 8
#define TARGET __attribute__((target("avx2")))
#define RENDER_VIEW fastssl_view_avx2
#include "view.h"
#endif
