#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads a block of a spool by docs/format.md alone: an independent reader that keeps the document honest.

    read_block.py BLOCK            what the head and the directory tell, as JSON
    read_block.py BLOCK RECORDS    writes the records, as bpf/event/event.h lays them out, to the file RECORDS

It needs nothing but Python 3.8 and, before 3.14, the command zstd. It is written to be read, not to be fast.
"""

import ipaddress
import json
import struct
import subprocess
import sys

U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
SEGMENT, SAMPLE, INCIDENT, TICK, LOST, ANCHOR, ACCOUNTING, LINK = 1, 2, 3, 16, 17, 18, 19, 20
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def crc32c(data, table=[]):
    if not table:
        for i in range(256):
            for _ in range(8):
                i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
            table.append(i)
    c = U32
    for b in data:
        c = c >> 8 ^ table[(c ^ b) & 0xFF]
    return c ^ U32


def unzstd(frame):
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        return subprocess.run(["zstd", "-dcq"], input=frame, stdout=subprocess.PIPE, check=True).stdout
    return zstd.decompress(frame)


def unzigzag(v):
    return v >> 1 ^ -(v & 1)


def signed32(v):
    return (v & U32) - ((v & 1 << 31) << 1)


def require(ok, what):
    if not ok:
        raise ValueError(what)


class Bytes:
    """Takes numbers from the front of bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        require(self.at + n <= len(self.data), "unexpected end")
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self):
        return self.take(1)[0]

    def uv(self):
        v = shift = 0
        while True:
            b = self.byte()
            v |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                require(v <= U64, "a number of more than 64 bits")
                return v

    def frame(self, raw, z):
        data = self.take(raw) if z == 0 else unzstd(self.take(z))
        require(len(data) == raw, "a frame of another length")
        return data


def read_head(block):
    require(block[:4] == b"\xf5tcb", "no block")
    version, schema, flags, length, head = struct.unpack_from("<BBHII", block, 4)
    require(version == 1 and schema == 1 and flags == 0, "a version that this program does not know")
    require(length == len(block), "torn")
    for start, end in ((0, head - 4), (head, length - 4)):
        require(crc32c(block[start:end]) == struct.unpack_from("<I", block, end)[0], "bad CRC")
    r = Bytes(block[: head - 4])
    r.at = 16
    h = {"events": r.uv(), "raw": r.uv(), "first": r.uv()}
    h["last"] = h["first"] + r.uv()
    h["kinds"] = {r.byte(): r.uv() for _ in range(r.uv())}
    mask = r.uv()
    h["hooks"] = {i: r.uv() for i in range(64) if mask >> i & 1}
    if r.byte():
        session, time = struct.unpack("<Q", r.take(8))[0], r.uv()
        realtime = struct.unpack("<q", r.take(8))[0]
        h["anchor"] = {"session": session, "time": time, "realtime": realtime, "tai": realtime + unzigzag(r.uv()), "uncertainty": r.uv()}
    n = r.uv()
    bloom = r.take(r.uv())
    directory = r.take(r.uv())
    require(r.at == head - 4, "bytes behind the directory")
    columns, used = read_section(directory)
    require(used == len(directory), "bytes behind the directory's columns")
    h["connections"] = read_directory(columns, n, h["first"])
    for c in h["connections"][1:]:
        require(not bloom or in_filter(bloom, c), "a connection that the filter denies")
    return h, block[head : length - 4]


def read_section(data):
    r = Bytes(data)
    raw = r.uv()
    f = Bytes(r.frame(raw, r.uv()))
    entries, column = [], -1
    for _ in range(f.uv()):
        column += f.uv() + 1
        encoding = f.byte()
        n = f.uv()
        parameter = 0 if encoding & 15 in (1, 2, 3) else f.uv()
        z = f.uv() if encoding & 0x80 else None
        words = [f.uv() for _ in range(parameter)] if encoding & 15 == 5 else None
        entries.append([column, encoding & 15, n, parameter, z, words])
    small = f
    for e in entries:
        width = {0: 0, 2: 2, 3: 3}.get(e[1], 1) * e[2]
        e.append(small.take(width) if e[4] is None else width)
    require(small.at == len(small.data), "bytes behind the columns of the first frame")
    for e in entries:
        if e[4] is not None:
            e[6] = r.frame(e[6], e[4])
    columns = {}
    for column, encoding, n, parameter, _, words, b in entries:
        if encoding == 0:
            v = [parameter] * n
        elif encoding in (1, 2, 3):
            v = [sum(b[p * n + i] << 8 * p for p in range(encoding)) for i in range(n)]
        elif encoding == 4:
            bits, at, v = int.from_bytes(r.take(parameter), "little"), 0, []
            for t in b:
                if t < 16:
                    v.append(t)
                    continue
                m = (t - 16) // 4 + 2
                v.append((4 + (t - 16) % 4 << m) + (bits >> at & (1 << m) - 1))
                at += m
        elif encoding == 5:
            v = [words[i] for i in b]
        else:
            require(encoding == 6, "unknown encoding")
            rest = Bytes(r.take(parameter))
            v = [struct.unpack("<H", rest.take(2))[0] if x == 255 else x for x in b]
            require(rest.at == parameter, "escaped values that nobody wants")
        columns[column] = v
    return columns, r.at


DIRECTORY = (
    "netns family local_hi local_lo peer_hi peer_lo local_port peer_port cookie first last segments samples incidents bytes_in bytes_out "
    "segs_in segs_out retransmits srtt cwnd state seen retransmit_bytes min_rtt opened established closed ended how pid comm_lo comm_hi "
    "total_retrans bytes_retrans"
).split()


def read_directory(columns, n, first):
    entries = []
    before = dict.fromkeys(DIRECTORY, 0)
    for i in range(n):
        e = {name: columns[c][i] if c in columns else 0 for c, name in enumerate(DIRECTORY)}
        for name in "netns local_hi local_lo peer_hi peer_lo local_port peer_port cookie".split():
            e[name] = (before[name] + unzigzag(e[name])) & U64
        before = dict(e)
        e["first"] += first
        e["last"] += e["first"]
        if e["opened"]:
            e["opened"] += first - 1
        for name in "established closed ended".split():
            if e[name]:
                e[name] += e["first"] - 1
        e["local"], e["peer"] = (struct.pack(">QQ", e[side + "_hi"], e[side + "_lo"]) for side in ("local", "peer"))
        e["comm"] = struct.pack("<QQ", e["comm_lo"], e["comm_hi"])
        entries.append(e)
    return entries


def in_filter(bloom, e):
    def mix(x):
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 & U64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB & U64
        return x ^ x >> 31

    h = 0
    for x in (e["local_hi"], e["local_lo"], e["peer_hi"], e["peer_lo"], e["local_port"] << 16 | e["peer_port"]):
        h = mix((h ^ x) + 0x9E3779B97F4A7C15 & U64)
    bits = [((h & U32) + i * (h >> 32 | 1) & U32) % (8 * len(bloom)) for i in range(5)]
    return all(bloom[b // 8] >> b % 8 & 1 for b in bits)


# The words of the other kinds: wide ones, narrow ones, first mask column and masks, first word column.
WORDS = {SAMPLE: (10, 84, 43, 12), INCIDENT: (2, 16, 149, 3), LOST: (2, 24, 170, 4), ANCHOR: (3, 2, 200, 1), ACCOUNTING: (96, 0, 206, 12), LINK: (0, 8, 314, 1)}

ORDER = [int(x) for x in (
    "67 19 23 24 20 83 79 78 26 18 4 62 43 63 81 61 33 42 29 5 38 32 44 36 59 77 22 0 11 60 15 75 "
    "8 37 76 74 3 58 64 73 2 72 14 17 9 31 30 56 16 35 69 10 70 65 13 66 89 34 57 12 27 90 91 41").split()]
ORDER += [x for x in range(94) if x not in ORDER]

# Words of a sample by name.
W = {"bytes_acked": 2, "bytes_received": 3, "bytes_sent": 8, "pacing_rate": 0}
W.update({name: 10 + i for i, name in enumerate(
    "rto ato snd_mss rcv_mss unacked sacked lost retrans last_data_sent last_data_recv last_ack_recv pmtu rcv_ssthresh rtt rttvar snd_ssthresh "
    "snd_cwnd advmss reordering rcv_rtt rcv_space total_retrans segs_out segs_in notsent_bytes min_rtt data_segs_in data_segs_out delivered".split())})
W.update({name: 59 + i for i, name in enumerate("snd_una snd_nxt rcv_nxt copied_seq write_seq rcv_wup sk_rcvbuf sk_sndbuf sk_wmem_queued".split())})
W.update(ca_name=85, trigger_seq=89, trigger_ack=90, trigger_len=91)
FIRST_STEP = [W[name] for name in "rtt snd_cwnd snd_una snd_nxt rcv_nxt write_seq trigger_seq trigger_ack trigger_len".split()]


class Lane:
    """One direction of a connection on one interface."""

    KEPT = "urgent ip_off vlan vlan_inner tos ttl ip_len".split()

    def __init__(self):
        self.ifindex = self.seq = self.ack = self.payload_len = self.end = self.max_end = self.ack_step = 0
        self.window = self.gso_size = self.gso_segs = self.ip_id = self.tcp_pad = self.overhead = self.tsval = self.tsecr = 0
        self.id_steps = self.fresh = False
        self.length, self.template, self.phase = [0, 0, 0], [0, 0], [None, None]
        self.sack = [(0, 0)] * 4
        for name in self.KEPT:
            setattr(self, name, 0)

    def copy(self):
        c = Lane()
        c.__dict__.update(self.__dict__)
        c.template = list(self.template)
        return c

    def clock(self, which, time):
        return (time + (self.phase[which] or 0) & U64) // 10**6

    def settle(self, which, time, value):
        t = self.clock(which, time)
        d = signed32(value - t)
        x = t + d if t + d >= 0 else t + d + (1 << 32)
        more = 500_000 if self.phase[which] is None else 999_999 if d < 0 else 0
        self.phase[which] = x * 10**6 - time + more & U64


class Connection:
    def __init__(self, number):
        self.next = [number] * 5
        self.cookie = [0] * 5
        self.sock_seq = 0
        self.lanes = [[], []]
        self.sample = None


class Template:
    def __init__(self, options):
        self.options, self.ts, self.sack, self.blocks = bytearray(options), None, None, 0
        at = 0
        while at < len(options) and options[at] != 0:
            if options[at] == 1:
                at += 1
                continue
            n = options[at + 1] if at + 1 < len(options) else 0
            if n < 2 or at + n > len(options):
                break
            if options[at] == 8 and n == 10 and self.ts is None:
                self.ts = at + 2
            if options[at] == 5 and n in (10, 18, 26, 34) and self.sack is None:
                self.sack, self.blocks = at + 2, (n - 2) // 8
            at += n


def units(v, u):
    return (v * u if v < 64 else v - 64) & U32


class Records:
    """Decodes the records of a block, in the order of docs/format.md."""

    def __init__(self, head, section):
        self.columns, used = read_section(section)
        require(not any(section[used:]), "padding that is not zero")
        self.at = dict.fromkeys(self.columns, 0)
        self.head = head
        self.connections = [Connection(i) for i in range(len(head["connections"]))]
        self.appeared = self.cpu = self.last_time = self.last_cookie = self.last_connection = self.last_anchor = 0
        self.clocks, self.others = {}, {}
        self.newest_lane = [Lane(), Lane()]
        self.newest_sample = None
        shapes = [self.columns.pop(c, []) for c in range(36, 41)]
        self.shapes = list(zip(*shapes))
        lengths, octets = self.columns.pop(41, []), self.columns.pop(42, [])
        self.templates = [Template(b"")]
        for n in lengths:
            self.templates.append(Template(bytes(octets[:n])))
            octets = octets[n:]
        require(not octets, "bytes of no template")

    def take(self, column):
        self.at[column] += 1
        return self.columns[column][self.at[column] - 1]

    def all(self):
        out = b"".join(self.record(shape) for shape in self.columns.get(0, []))
        self.at[0] = self.head["events"]
        for c, v in self.columns.items():
            require(self.at[c] == len(v), "column %d: values that no record wants" % c)
        require(len(out) == self.head["raw"], "records of another length")
        return out

    def record(self, shape):
        kind, hook, dir, flags, mask = self.shapes[shape]
        self.mask = mask
        side = dir >> 1 & 1
        cls = side if kind == SEGMENT else 2 + side if kind == SAMPLE else 4

        before = self.connections[self.last_connection]
        if mask >> 0 & 1:
            v = self.take(1)
            if v == 1:
                self.appeared += 1
            before.next[cls] = self.last_connection if v == 0 else self.appeared if v == 1 else v - 2
        number = before.next[cls]
        c, key = self.connections[number], self.head["connections"][number]
        self.last_connection = number

        if mask >> 1 & 1:
            self.cpu = self.take(2)
        clock = self.clocks.get(self.cpu, 0) or self.last_time
        v = self.take(3 + cls)
        time = clock + (-v if mask >> 2 & 1 else v) & U64
        self.clocks[self.cpu] = self.last_time = time

        if mask >> 3 & 1:
            c.cookie[cls] = self.last_cookie + unzigzag(self.take(8)) & U64
        cookie = c.cookie[cls]
        self.last_cookie = cookie or self.last_cookie
        sock_seq = c.sock_seq + 1 if cookie else 0
        if mask >> 4 & 1:
            sock_seq += unzigzag(self.take(9))
        sock_seq &= U32
        c.sock_seq = sock_seq or c.sock_seq

        if kind == SEGMENT:
            body = self.segment(c, key, side, flags, time)
        elif kind == SAMPLE:
            body = self.sample(c, side, dir, time)
        elif kind == TICK:
            body = b""
        else:
            body = self.other(c, kind, hook, time)
        return struct.pack("<QQQIHBB", time, cookie, key["netns"], sock_seq, 72 + len(body), kind, hook) + key["local"] + key["peer"] + struct.pack(
            "<HHHBB", key["local_port"], key["peer_port"], self.cpu, key["family"], dir) + body

    def enter_lane(self, c, side, ifindex):
        lanes = c.lanes[side]
        for i, lane in enumerate(lanes[:8]):
            if lane.ifindex == ifindex:
                lanes.insert(0, lanes.pop(i))
                return
        lane = self.newest_lane[side].copy()
        lane.ifindex, lane.fresh = ifindex, True
        lane.phase, lane.length, lane.sack = [None, None], [0, 0, 0], [(0, 0)] * 4
        if c.lanes[side ^ 1]:
            o = c.lanes[side ^ 1][0]
            lane.max_end, lane.ack, lane.tsval, lane.tsecr = o.ack, o.max_end, o.tsecr, o.tsval
        self.newest_lane[side] = lane
        lanes.insert(0, lane)

    def segment(self, c, key, side, flags, time):
        has, take = (lambda bit: self.mask >> bit & 1), self.take
        if has(14):
            self.enter_lane(c, side, take(25))
        l = c.lanes[side][0]
        o = c.lanes[side ^ 1][0] if c.lanes[side ^ 1] else Lane()
        seq = l.max_end
        if has(5):
            v = take(10)
            seq = l.end if v == 0 else l.max_end + unzigzag(v - 1) & U32
        ack = l.ack if flags & ACK else 0
        mode = self.mask >> 16 & 3
        if mode == 1:
            ack = o.max_end
        elif mode == 2:
            ack = ack + l.ack_step & U32
        elif mode == 3:
            ack = ack + units(take(11), o.gso_size) & U32
        k = 2 if flags & (SYN | RST) else 1 if flags & PSH else 0
        payload_len = units(take(12), l.gso_size) if has(6) else l.length[k]
        window = l.window + (unzigzag(take(13)) if has(7) else 0) & U16
        gso_size = take(14) if has(8) else l.gso_size if payload_len > l.gso_size else 0
        gso_segs = take(15) if has(9) else ((payload_len + gso_size - 1 & U32) // gso_size if gso_size else 1) & U16
        ip_id = l.ip_id + l.gso_segs & U16 if key["family"] == 4 and l.id_steps else l.ip_id
        if has(10):
            ip_id = ip_id + unzigzag(take(16)) & U32
        syn = flags >> 1 & 1
        number = take(17) if has(11) else l.template[syn]
        t = self.templates[number]
        options = bytearray(t.options)
        tsval, tsecr = l.tsval, l.tsecr
        if t.ts is not None:
            tsval = l.clock(0, time) & U32
            if has(12):
                tsval = tsval + unzigzag(take(18)) & U32
                l.settle(0, time, tsval)
            clock = l.clock(1, time) & U32
            mode = self.mask >> 18 & 3
            tsecr = o.tsval if mode == 0 else l.tsecr if mode == 1 else clock if mode == 2 else o.tsval + unzigzag(take(19)) & U32
            if tsecr != clock:
                l.settle(1, time, tsecr)
            struct.pack_into(">II", options, t.ts, tsval, tsecr)
        if t.blocks:
            code, last = take(20), list(l.sack)
            for i in range(t.blocks):
                left, right = last[i]
                how = code >> 2 * i & 3
                if how == 1:
                    right = right + unzigzag(take(21)) & U32
                elif how == 2:
                    left, right = last[max(i - 1, 0)]
                elif how == 3:
                    left = ack + unzigzag(take(22)) & U32
                    right = left + unzigzag(take(23)) & U32
                l.sack[i] = left, right
                struct.pack_into(">II", options, t.sack + 8 * i, left, right)
        rare = {name: getattr(l, name) for name in Lane.KEPT}
        rare.update(checksum=0, tcp_len=len(options) + l.tcp_pad & 0xFF)
        if has(15):
            v = take(26)
            for i, name in enumerate("urgent checksum ip_off vlan vlan_inner tos ttl ip_len tcp_len".split()):
                if v >> i & 1:
                    rare[name] = take(27 + i)
        wire_len = l.overhead + rare["ip_len"] + rare["tcp_len"] + payload_len
        if has(13):
            wire_len += unzigzag(take(24))
        wire_len &= U32

        l.end = seq + payload_len + syn + (flags & FIN) & U32
        if syn or l.fresh or signed32(l.end - l.max_end) > 0:
            l.max_end = l.end
        if flags & ACK and ack != l.ack:
            l.ack_step, l.ack = ack - l.ack & U32, ack
        l.id_steps = ip_id != 0 if l.fresh else ip_id != l.ip_id and ip_id == l.ip_id + l.gso_segs & U16
        l.length[k], l.window, l.gso_segs, l.ip_id, l.template[syn] = payload_len, window, gso_segs, ip_id, number
        l.gso_size = gso_size or l.gso_size
        for name in Lane.KEPT:
            setattr(l, name, rare[name])
        l.tcp_pad = rare["tcp_len"] - len(options) & 0xFF
        l.overhead = wire_len - rare["ip_len"] - rare["tcp_len"] - payload_len & U32
        l.tsval, l.tsecr, l.seq, l.payload_len, l.fresh = tsval, tsecr, seq, payload_len, False

        return struct.pack(
            "<IIIIHHHHHHIHHHBBIHBB", seq, ack, payload_len, l.ifindex, flags, window, rare["urgent"], rare["checksum"], gso_size, gso_segs, ip_id,
            rare["ip_off"], rare["vlan"], rare["vlan_inner"], rare["tos"], rare["ttl"], wire_len, rare["ip_len"], rare["tcp_len"], len(options),
        ) + options + bytes(-len(options) % 8)

    def masked(self, kind):
        """The words that differ from the prediction, in the order in which their bits stand."""
        wide, narrow, column, planes = WORDS[kind]
        bits = sum(self.take(column + p) << 8 * p for p in range(planes))
        order = ORDER if kind == SAMPLE else range(wide + narrow)
        return [word for b, word in enumerate(order) if bits >> b & 1]

    def correct(self, kind, w, words):
        wide, narrow, column, planes = WORDS[kind]
        for word in words:
            w[word] = w[word] + unzigzag(self.take(column + planes + word)) & (U64 if word < wide else U32)

    def pack(self, kind, w):
        wide, narrow, _, _ = WORDS[kind]
        return struct.pack("<%dQ%dI" % (wide, narrow), *w)

    def other(self, c, kind, hook, time):
        wide, narrow, _, _ = WORDS[kind]
        slot = (kind, self.cpu if kind == ACCOUNTING else hook % 32)
        w = list(self.others.get(slot, [0] * (wide + narrow)))
        if kind == INCIDENT and c.lanes[0]:
            w[2], w[3] = c.lanes[0][0].ack, c.lanes[0][0].end
        if kind == LOST:
            w[0] = w[1] = time
        if kind == ANCHOR:
            w[1], w[2] = w[1] + time - self.last_anchor & U64, w[2] + time - self.last_anchor & U64
            self.last_anchor = time
        self.correct(kind, w, self.masked(kind))
        self.others[slot] = w
        return self.pack(kind, w)

    def sample(self, c, side, dir, time):
        words = self.masked(SAMPLE)
        before = c.sample
        w = list((before or self.newest_sample or ([0] * 94, 0, 0))[0])
        get = lambda name: w[W[name]]

        def put(name, v):
            w[W[name]] = v & (U32 if W[name] >= 10 else U64)

        def later(name, v):
            if signed32(v - get(name)) > 0:
                put(name, v)

        if before:
            if before[1] == 1:
                later("snd_una", get("trigger_ack"))
                later("rcv_nxt", get("trigger_seq") + get("trigger_len"))
            if before[1] == 2:
                later("snd_nxt", get("trigger_seq") + get("trigger_len"))
        lane = c.lanes[side][0] if c.lanes[side] else None
        if lane:
            put("trigger_seq", lane.seq), put("trigger_len", lane.payload_len), put("trigger_ack", lane.ack)
        elif side:
            put("trigger_seq", get("snd_nxt")), put("trigger_ack", get("rcv_nxt"))
        else:
            put("trigger_seq", get("rcv_nxt")), put("trigger_ack", get("snd_una"))
        if side:
            later("snd_nxt", get("trigger_seq"))
            put("rcv_nxt", get("trigger_ack"))
            later("write_seq", get("trigger_seq") + get("trigger_len"))
        else:
            put("rcv_nxt", get("trigger_seq"))
        self.correct(SAMPLE, w, [x for x in words if x in FIRST_STEP])

        if before:
            old, old_dir, old_time = before
            was = lambda name: old[W[name]]
            una, nxt, rcv = (get(name) - was(name) & U32 for name in ("snd_una", "snd_nxt", "rcv_nxt"))
            mss = was("snd_mss") or 1
            acked = (una + mss - 1 & U32) // mss
            segs = lane.gso_segs if lane else 1
            data = segs if get("trigger_len") else 0
            for name, more in (("bytes_acked", una), ("bytes_received", rcv), ("delivered", acked), ("unacked", (nxt + mss - 1 & U32) // mss - acked), ("copied_seq", rcv)):
                put(name, get(name) + more)
            put("notsent_bytes", max(signed32(get("write_seq") - get("snd_nxt")), 0))
            put("sk_wmem_queued", get("sk_wmem_queued") + get("write_seq") - was("write_seq") - una)
            if old_dir == 1:
                put("last_ack_recv", 0)
                if was("trigger_len"):
                    put("last_data_recv", 0)
            elif was("trigger_len"):
                put("last_data_sent", 0)
            for name in ("last_data_sent", "last_data_recv", "last_ack_recv"):
                put(name, get(name) + time // 10**6 - old_time // 10**6)
            if side:
                put("bytes_sent", get("bytes_sent") + get("trigger_len"))
                put("segs_out", get("segs_out") + segs)
                put("data_segs_out", get("data_segs_out") + data)
                put("rcv_wup", get("rcv_nxt"))
                if data:
                    put("last_data_sent", 0)
            else:
                put("segs_in", get("segs_in") + segs)
                put("data_segs_in", get("data_segs_in") + data)
            if (get("snd_cwnd") != was("snd_cwnd") or get("rtt") != was("rtt")) and old[W["ca_name"]] & 0xFF != ord("b"):
                ratio = 200 if get("snd_cwnd") < get("snd_ssthresh") // 2 else 120
                put("pacing_rate", (get("snd_mss") * 80000 * ratio * max(get("snd_cwnd"), get("unacked")) & U64) // (8 * get("rtt") + 4))
        self.correct(SAMPLE, w, [x for x in words if x not in FIRST_STEP])
        c.sample = self.newest_sample = (w, dir, time)
        return self.pack(SAMPLE, w)


def address(b):
    a = ipaddress.IPv6Address(b)
    return str(a.ipv4_mapped or a)


def main(args):
    if len(args) not in (1, 2):
        sys.exit(__doc__)
    with open(args[0], "rb") as f:
        head, section = read_head(f.read())
    if len(args) == 2:
        with open(args[1], "wb") as f:
            f.write(Records(head, section).all())
    for c in head["connections"]:
        for name in ("local", "peer"):
            c[name] = address(c[name])
        c["comm"] = c["comm"].rstrip(b"\0").decode(errors="replace")
        for name in "local_hi local_lo peer_hi peer_lo comm_lo comm_hi".split():
            del c[name]
    json.dump(head, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
