"""One pinned map as bytes in, bytes out: single elements and batches. Privilege: CAP_BPF."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from types import TracebackType

from ebpf import syscall
from ebpf.errors import BpfError, MapFull

_BATCH = 4096
PERCPU_ARRAY = 6


class Map:
    """A map by its pin. Keys and values are exactly as long as the map says; batches are such pieces end to end.

    :raises BpfError: there is no such pin, or the privilege is missing.
    """

    def __init__(self, path: str) -> None:
        self.name = os.path.basename(path)
        self.fd = syscall.obj_get(path)
        # struct bpf_map_info: type, id, key_size, value_size, max_entries
        info = syscall.obj_info(self.fd, 80, f"reading the properties of {path}")
        self.type, self.id, self.key_bytes, self.value_bytes, self.limit = struct.unpack_from("=IIIII", info)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Map:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lookup(self, key: bytes) -> bytes | None:
        size = self.value_bytes
        if self.type == PERCPU_ARRAY:
            size = (size + 7) // 8 * 8 * possible_cpus()
        value = ctypes.create_string_buffer(size)
        attr = struct.pack("=iIQQQ", self.fd, 0, syscall.address(self._key(key)), ctypes.addressof(value), 0)
        result, number, _ = syscall.bpf(syscall.MAP_LOOKUP_ELEM, attr)
        if result == 0:
            return value.raw
        if number == errno.ENOENT:
            return None
        raise BpfError(number, f"reading BPF map {self.name}")

    def update(self, key: bytes, value: bytes) -> None:
        """Write one element; readers see the old one or the new one.

        :raises MapFull: nothing was written.
        """
        attr = struct.pack(
            "=iIQQQ", self.fd, 0, syscall.address(self._key(key)), syscall.address(self._value(value)), 0
        )
        result, number, _ = syscall.bpf(syscall.MAP_UPDATE_ELEM, attr)
        if result < 0:
            raise self._write_error(number)

    def delete(self, key: bytes) -> bool:
        """Whether the element was there."""
        attr = struct.pack("=iIQQQ", self.fd, 0, syscall.address(self._key(key)), 0, 0)
        result, number, _ = syscall.bpf(syscall.MAP_DELETE_ELEM, attr)
        if result < 0 and number != errno.ENOENT:
            raise BpfError(number, f"deleting from BPF map {self.name}")
        return result == 0

    def update_batch(self, keys: bytes, values: bytes) -> None:
        """Write many elements; when one fails, those before it stay written (the caller removes them by key).

        :raises MapFull: the map had no room for all.
        """
        total = len(keys) // self.key_bytes
        done = 0
        while done < total:
            part = min(_BATCH, total - done)
            wrote, number = self._batch(
                syscall.MAP_UPDATE_BATCH,
                syscall.address(keys) + done * self.key_bytes,
                syscall.address(values) + done * self.value_bytes,
                part,
            )
            if number:
                raise self._write_error(number)
            done += wrote

    def delete_batch(self, keys: bytes) -> None:
        """Delete many elements; keys that are not there are skipped."""
        total = len(keys) // self.key_bytes
        done = 0
        while done < total:
            part = min(_BATCH, total - done)
            gone, number = self._batch(syscall.MAP_DELETE_BATCH, syscall.address(keys) + done * self.key_bytes, 0, part)
            if number == errno.ENOENT:
                gone += 1
            elif number:
                raise BpfError(number, f"deleting from BPF map {self.name}")
            done += gone

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every element. Elements written meanwhile may be missed."""
        return self._walk(syscall.MAP_LOOKUP_BATCH)

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        """Every element, each removed as it is read (hash maps only)."""
        return self._walk(syscall.MAP_LOOKUP_AND_DELETE_BATCH)

    def _walk(self, command: int) -> Iterator[tuple[bytes, bytes]]:
        room = _BATCH
        position = ctypes.create_string_buffer(max(self.key_bytes, 8))
        started = False
        while True:
            keys = ctypes.create_string_buffer(self.key_bytes * room)
            values = ctypes.create_string_buffer(self.value_bytes * room)
            attr = struct.pack(
                "=QQQQIiQQ",
                ctypes.addressof(position) if started else 0,
                ctypes.addressof(position),
                ctypes.addressof(keys),
                ctypes.addressof(values),
                room,
                self.fd,
                0,
                0,
            )
            result, number, after = syscall.bpf(command, attr)
            if number == errno.ENOSPC and room < 1 << 22:  # one hash bucket holds more than the room given
                room *= 4
                continue
            if result < 0 and number != errno.ENOENT:
                raise BpfError(number, f"reading BPF map {self.name}")
            (count,) = struct.unpack_from("=I", after, 32)
            raw_keys, raw_values = keys.raw, values.raw
            for i in range(count):
                yield (
                    raw_keys[i * self.key_bytes : (i + 1) * self.key_bytes],
                    raw_values[i * self.value_bytes : (i + 1) * self.value_bytes],
                )
            if result < 0:
                return
            started = True

    def _batch(self, command: int, keys: int, values: int, count: int) -> tuple[int, int]:
        attr = struct.pack("=QQQQIiQQ", 0, 0, keys, values, count, self.fd, 0, 0)
        result, number, after = syscall.bpf(command, attr)
        (done,) = struct.unpack_from("=I", after, 32)
        return done, (number if result < 0 else 0)

    def _write_error(self, number: int) -> BpfError:
        if number in (errno.E2BIG, errno.ENOSPC):
            return MapFull(self.name, self.limit)
        return BpfError(number, f"writing BPF map {self.name}")

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name}: a key has {self.key_bytes} bytes, not {len(key)}")
        return key

    def _value(self, value: bytes) -> bytes:
        if len(value) != self.value_bytes:
            raise ValueError(f"{self.name}: a value has {self.value_bytes} bytes, not {len(value)}")
        return value


def possible_cpus() -> int:
    """How many values a per-CPU map answers with (the kernel's possible, not online, CPUs)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return parse_cpus(file.read())


def parse_cpus(text: str) -> int:
    """The number of CPUs up to the last one of a list like "0,2-7"."""
    return int(text.strip().split(",")[-1].split("-")[-1]) + 1
