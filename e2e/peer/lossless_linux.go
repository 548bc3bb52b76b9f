package main

import (
	"context"
	"fmt"
	"net"
	"time"
)

const (
	fewLost     = 0.01 // what "without loss" means
	searchSteps = 7    // narrows the rate down to 1 %
	paceTick    = 500 * time.Microsecond
)

// lossless finds the highest rate of datagrams of which at most one in a hundred is lost: it
// halves the interval between nothing and what can be sent unpaced. A rate that lost too much is
// tried twice: what else the machine does may have been the cause. Its figure is what arrived per
// second at the best rate.
func (l *load) lossless() (result, error) {
	c, err := l.dial(context.Background(), "udp", portSink)
	if err != nil {
		return failed(err), nil
	}
	defer c.Close()
	each := max(l.length/10, 100*time.Millisecond)
	best, err := l.trial(c, 0, each)
	if err != nil {
		return failed(err), nil
	}
	low, high := 0.0, best.offered
	if best.lost() > fewLost {
		best = trial{}
		for range searchSteps {
			rate := (low + high) / 2
			got, err := l.trial(c, rate, each)
			if err == nil && got.lost() > fewLost {
				got, err = l.trial(c, rate, each)
			}
			if err != nil {
				return failed(err), nil
			}
			if got.lost() > fewLost {
				high = rate
			} else {
				low, best = rate, got
			}
		}
	}
	r := l.result(time.Second)
	r.Extra["value"], r.Extra["offered"], r.Extra["lost"] = best.arrived, best.offered, best.lost()
	return r, nil
}

// trial is what became of datagrams at one rate, per second.
type trial struct {
	offered, arrived float64
}

func (t trial) lost() float64 { return 1 - t.arrived/max(t.offered, 1) }

// trial sends for a while at a rate (0: unpaced) and asks the sink what came.
func (l *load) trial(c net.Conn, rate float64, length time.Duration) (trial, error) {
	before, err := l.sinkCount("pps")
	if err != nil {
		return trial{}, err
	}
	sent, took, err := l.pace(c, rate, length)
	if err != nil {
		return trial{}, err
	}
	after, err := l.sinkCount("pps")
	if err != nil {
		return trial{}, err
	}
	l.packets.Add(int64(sent))
	return trial{offered: float64(sent) / took.Seconds(), arrived: float64(after-before) / took.Seconds()}, nil
}

func (l *load) pace(c net.Conn, rate float64, length time.Duration) (sent int, took time.Duration, err error) {
	b := make([]byte, l.size)
	begin := time.Now()
	for took < length {
		due := sent + 32
		if rate > 0 {
			due = int(rate * took.Seconds())
		}
		for ; sent < due; sent++ {
			if _, err := c.Write(b); err != nil {
				return sent, took, fmt.Errorf("datagram %d: %w", sent, err)
			}
		}
		if rate > 0 {
			time.Sleep(paceTick)
		}
		took = time.Since(begin)
	}
	return sent, took, nil
}
