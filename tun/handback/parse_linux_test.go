package handback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun/resend"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// What is written about an element reads as it was meant.
func TestElementRoundTrip(t *testing.T) {
	for _, f := range []packet.Flow{{Proto: packet.TCP, Local: at2(host4, 1), Remote: at2(far4, 443)}, {Proto: packet.UDP, Local: at2(host6, 2), Remote: at2(far6, 53)}} {
		w, k := &wire{}, keyOf(f)
		w.element(newElement, unix.NLM_F_CREATE, nftables.TableFamilyINet, "table", "set", "4", &k, time.Minute)
		if n := int(binary.NativeEndian.Uint32(w.out)); n != len(w.out) {
			t.Errorf("the message says it has %d bytes of %d", n, len(w.out))
		}
		var got []packet.Flow
		eachElement(w.out[netlinkHeader:], func(e found) {
			if g, ok := flowOf(e.key); ok {
				got = append(got, g)
			}
		})
		if len(got) != 1 || got[0] != f {
			t.Errorf("%s became %v", f, got)
		}
	}
}

// FuzzParse feeds damaged answers: they are passed over, and never more is read than is there.
func FuzzParse(f *testing.F) {
	w := &wire{}
	k := keyOf(packet.Flow{Proto: packet.TCP, Local: at2(host6, 1), Remote: at2(far6, 443)})
	w.element(newElement, 0, nftables.TableFamilyINet, "t", "s", "6", &k, time.Second)
	f.Add(w.out[netlinkHeader:])
	f.Add(bytes.Repeat([]byte{0xff}, 100))
	f.Add([]byte{0, 0, 0, 0, 4, 0, 3, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		eachElement(b, func(e found) {
			if g, ok := flowOf(e.key); ok && !g.Local.IsValid() {
				t.Errorf("%v", g)
			}
		})
		if s, ok := parseSocket(packet.TCP, b); ok && (!s.Local.IsValid() || s.Local.Addr().Is4In6()) {
			t.Errorf("%v", s)
		}
		_ = message{body: b}.errno()
	})
}

// FuzzRepair: whatever is held, what is sent is a whole packet of the flow, or nothing.
func FuzzRepair(f *testing.F) {
	flow := packet.Flow{Proto: packet.UDP, Local: at2(host4, 1), Remote: at2(far4, 2)}
	f.Add(packet.AppendUDP(nil, &packet.IP{Src: flow.Local.Addr(), Dst: flow.Remote.Addr(), TTL: 1}, 1, 2, []byte("x")))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, held []byte) {
		h, err := packet.Parse(held)
		f := flow
		if err == nil && check(h.Flow) == nil {
			f = h.Flow
		}
		b, err := resend.Whole(f, held)
		if err != nil {
			if !errors.Is(err, ErrUnsupported) {
				t.Error(err)
			}
			return
		}
		if h, err = packet.Parse(b); err != nil || h.Flow != f || !h.TransportChecksumOK(b) {
			t.Errorf("%v: % x became % x", err, held, b)
		}
	})
}

// Every mistake in the options is named.
func TestOptions(t *testing.T) {
	good := (&lab{t: t}).options()
	if _, err := good.withDefaults(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Options){
		"no mark": func(o *Options) { o.Mark = 0 }, "mark beyond the mask": func(o *Options) { o.Mark |= 1 },
		"no logger": func(o *Options) { o.Logger = nil }, "limit": func(o *Options) { o.Limit = -1 },
	} {
		o := good
		change(&o)
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
