/* Reading the table of subcommands. A command of NULL stands for kvtierctl itself. */
#pragma once

#include <stdio.h>

#include "libclient/ctl/ctl.h"

const struct ctl_command *commands_find(const char *name); /* NULL: none */
/* Whether the option may stand after this command: its own, and the global ones. */
bool commands_takes(const struct ctl_command *command, const struct ctl_option *option);
void commands_print_usage(FILE *f, const struct ctl_command *command);
void commands_print_help(FILE *f, const struct ctl_command *command);
