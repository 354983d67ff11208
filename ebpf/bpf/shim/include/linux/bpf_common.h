/* SPDX-License-Identifier: GPL-2.0 */
/* Empty: names of classic BPF instructions, which C sources do not write. */
