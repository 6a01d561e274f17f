// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"log/slog"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo returns a zap.Logger, as the Collector's components want one, that writes to h. What
// drop tells true of is left out.
func zapTo(h slog.Handler, drop func(zapcore.Entry) bool) *zap.Logger {
	return zap.New(&slogCore{handler: h, drop: drop})
}

// slogCore is a zapcore.Core over a slog.Handler.
type slogCore struct {
	handler slog.Handler
	drop    func(zapcore.Entry) bool
}

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), slogLevel(l))
}

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{handler: c.handler.WithAttrs(slogAttrs(fields)), drop: c.drop}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && (c.drop == nil || !c.drop(e)) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, slogLevel(e.Level), e.Message, 0)
	r.AddAttrs(slogAttrs(fields)...)
	return c.handler.Handle(context.Background(), r)
}

func (c *slogCore) Sync() error { return nil }

// slogAttrs translates the fields. Those of a type that slog has no kind for go through zap's
// own encoding.
func slogAttrs(fields []zapcore.Field) []slog.Attr {
	attrs := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		switch f.Type {
		case zapcore.SkipType:
		case zapcore.StringType:
			attrs = append(attrs, slog.String(f.Key, f.String))
		case zapcore.BoolType:
			attrs = append(attrs, slog.Bool(f.Key, f.Integer == 1))
		case zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type, zapcore.Int8Type:
			attrs = append(attrs, slog.Int64(f.Key, f.Integer))
		case zapcore.DurationType:
			attrs = append(attrs, slog.Duration(f.Key, time.Duration(f.Integer)))
		case zapcore.ErrorType:
			if err, ok := f.Interface.(error); ok {
				attrs = append(attrs, slog.String(f.Key, err.Error()))
			}
		default:
			enc := zapcore.NewMapObjectEncoder()
			f.AddTo(enc)
			for key, value := range enc.Fields {
				attrs = append(attrs, slog.Any(key, value))
			}
		}
	}
	return attrs
}
