#pragma once

/* The processor that this was built for; defined in one of cpu_*.c. */
extern const char cpu[];
