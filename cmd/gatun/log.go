package main

import (
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger writes to stderr: JSON lines with a time. It never sees payloads. The level may be
// changed while it runs.
func newLogger(level zap.AtomicLevel) (*zap.Logger, error) {
	c := zap.NewProductionConfig()
	c.Level = level
	c.Sampling = &zap.SamplingConfig{Initial: 100, Thereafter: 1000}
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.DisableStacktrace = true
	return c.Build()
}

// lastProblem is why the newest edit of the configuration is not in force.
type lastProblem struct {
	mu  sync.Mutex
	err error
}

func (p *lastProblem) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *lastProblem) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		return ""
	}
	return p.err.Error()
}
