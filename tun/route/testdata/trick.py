# Attempts to get a packet past the TUN device, one per line of the input, each in a process of its
# own: trick protocol destination source port, with tabs between them.
import os, select, socket, struct, sys

while True:
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    child = os.fork()
    if child == 0:
        break
    if os.waitpid(child, 0)[1]:
        print("the attempt itself failed", flush=True)

trick, proto, dst, src, port = line.rstrip("\n").split("\t")
port = int(port)
v6 = ":" in dst
family = socket.AF_INET6 if v6 else socket.AF_INET
level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
dev, index = b"eth0", socket.if_nametoindex("eth0")
SO_BINDTODEVICE, SO_MARK, IP_PKTINFO, IPV6_PKTINFO, IP_UNICAST_IF, IPV6_UNICAST_IF = 25, 36, 8, 50, 50, 76
OWN, OLD = 0x67610000, 0x67620000
packed = socket.inet_pton(family, src)
pktinfo = packed + struct.pack("i", index) if v6 else struct.pack("i", index) + packed + packed
echo = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 1, 1) + b"leak"


def checksum(b):
    b += b"\0" * (len(b) % 2)
    s = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    s = (s >> 16) + (s & 0xFFFF)
    return ~(s + (s >> 16)) & 0xFFFF


def raw():
    s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, dev)
    s.setsockopt(socket.SOL_SOCKET, SO_MARK, OWN)
    number = {"tcp": 6, "udp": 17, "icmp": 58 if v6 else 1}[proto]
    body = {"tcp": struct.pack("!HHIIBBHHH", 4444, port, 1, 0, 0x50, 2, 1000, 0, 0),
            "udp": struct.pack("!HHHH", 4444, port, 12, 0) + b"leak", "icmp": echo}[proto]
    if v6:
        head = struct.pack("!IHBB", 6 << 28, len(body), number, 64) + packed + socket.inet_pton(family, dst)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, number, 0) + packed + socket.inet_pton(family, dst)
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    s.sendto(head + body, (dst, 0))


def ordinary():
    kind = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "icmp": (socket.SOCK_DGRAM, 58 if v6 else 1)}[proto]
    s = socket.socket(family, *kind)
    s.setblocking(False)
    if "device" in trick:
        s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, dev)
    if "own" in trick:
        s.setsockopt(socket.SOL_SOCKET, SO_MARK, OWN)
    if "old" in trick:
        s.setsockopt(socket.SOL_SOCKET, SO_MARK, OLD)
    if trick == "source":
        s.bind((src, 0))
    if trick == "unicast-if":
        s.setsockopt(level, IPV6_UNICAST_IF if v6 else IP_UNICAST_IF, struct.pack("!I", index))
    if trick == "dontroute":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    if trick == "pktinfo" and v6 and proto == "tcp":
        s.setsockopt(level, IPV6_PKTINFO, pktinfo)
    if proto == "tcp":
        s.connect_ex((dst, port))
        select.select([], [s], [], 0.15)
    elif trick == "pktinfo":
        s.sendmsg([echo], [(level, IPV6_PKTINFO if v6 else IP_PKTINFO, pktinfo)], 0, (dst, port))
    else:
        s.sendto(echo, (dst, port))


try:
    raw() if trick == "raw" else ordinary()
    print("sent")
except OSError as e:
    print(e)
