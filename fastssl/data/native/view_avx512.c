#if defined(__x86_64__)
#define WIDTH 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define RENDER_VIEW fastssl_view_avx512
#include "view.h"
#endif
