#pragma once

/* This module's name and what it heard from F. */
const char *e_says(void);
