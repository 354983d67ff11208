/* SPDX-License-Identifier: GPL-2.0 */
/* What every hook needs: its two answers, and the numbers of families and types (bits/socket.h). */
#ifndef AM_HOOKS_H
#define AM_HOOKS_H

#include "am_report.h"
#include "am_verdict.h"

#define AM_STOP 0
#define AM_GO 1

#define AM_STREAM 1
#define AM_DGRAM 2
#define AM_UNIX_FAMILY 1
#define AM_INET 2
#define AM_INET6 10

#endif
