#include "base/fault.h"

#include <errno.h>
#include <stdatomic.h>

static atomic_uint_fast32_t remaining[CS_FAULT_POINTS];

void cs_fault_arm(cs_fault_point point, uint32_t n)
{
    atomic_store(&remaining[point], n);
}

void cs_fault_disarm(void)
{
    for (int i = 0; i < CS_FAULT_POINTS; i++)
        atomic_store(&remaining[i], 0);
}

bool cs_fault_pending(cs_fault_point point)
{
    return atomic_load_explicit(&remaining[point], memory_order_relaxed) != 0;
}

bool cs_fault_hit(cs_fault_point point)
{
    uint_fast32_t left = atomic_load_explicit(&remaining[point], memory_order_relaxed);
    while (left != 0)
        if (atomic_compare_exchange_weak(&remaining[point], &left, left - 1))
            return left == 1;
    return false;
}

bool cs_fault_errno(cs_fault_point point, int err)
{
    if (!cs_fault_hit(point))
        return false;
    errno = err;
    return true;
}
