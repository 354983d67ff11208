/* SPDX-License-Identifier: GPL-2.0 */
/* What every hook needs: its two answers, the numbers of families and types (bits/socket.h), and which refused connects
 * are only a resolver sorting addresses. */
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

/* Ports that resolvers put into the UDP connect with which they sort candidate addresses by source address
 * (RFC 6724): glibc without a service 0, Go's net 9, musl 65535. */
static __always_inline int am_is_sorting_port(__u16 port)
{
	return port == 0 || port == 9 || port == 65535;
}

/* A refused UDP connect that is only a resolver sorting addresses: by its port, or (glibc with a service) because
 * the same address and port are open by TCP. No data can follow, so nothing is lost but the report. */
static __always_inline int am_is_sorting(struct am_query *q)
{
	int expired = 0, sorting;

	if (am_is_sorting_port(q->port))
		return 1;
	q->proto = AM_TCP;
	sorting = am_exact_of(q) || am_host_allows(q, &expired);
	q->proto = AM_UDP;
	return sorting;
}

#endif
