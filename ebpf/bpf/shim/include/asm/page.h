/* SPDX-License-Identifier: GPL-2.0 */
/* Only sizes tables in macros of bcc that these programs do not use. */
#define PAGE_SIZE 4096UL
