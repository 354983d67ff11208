/* SPDX-License-Identifier: GPL-2.0 */
/* bcc includes this file before everything else; without CONFIG_BPF_SYSCALL it refuses to go on. */
#ifndef AM_SHIM_KCONFIG_H
#define AM_SHIM_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
