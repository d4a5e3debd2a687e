#pragma once

/* This module's name and what it heard from E. */
const char *c_says(void);
