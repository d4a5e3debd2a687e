#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/b/b.h"
#include "lib/c/c.h"

/* The line that the demo changes for its second round. */
static const char *const edition = "first edition";

/* Opens a data file that was shipped beside this program. */
static FILE *open_shared(const char *name) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (slash - path + strlen(name) + 2 > sizeof path) return NULL;
    strcpy(slash + 1, name);
    return fopen(path, "r");
}

int main(int argc, char **argv) {
    char greeting[64] = "";
    FILE *file = open_shared("share/greeting.txt");
    if (!file || !fgets(greeting, sizeof greeting, file)) {
        perror("share/greeting.txt");
        return 1;
    }
    fclose(file);
    greeting[strcspn(greeting, "\n")] = '\0';
    printf("%s from A (%s): %s, %s", greeting, edition, b_says(), c_says());
    for (int i = 1; i < argc; i++) printf(" %s", argv[i]);
    printf("\n");
    return 0;
}
