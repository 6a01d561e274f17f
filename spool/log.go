// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// badgerLog hands Badger's messages to slog, all at debug level: what matters to a person is returned as an error.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) put(kind, format string, args []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("badger", "kind", kind, "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}

func (l badgerLog) Errorf(format string, args ...any)   { l.put("error", format, args) }
func (l badgerLog) Warningf(format string, args ...any) { l.put("warning", format, args) }
func (l badgerLog) Infof(format string, args ...any)    { l.put("info", format, args) }
func (l badgerLog) Debugf(format string, args ...any)   {} // one for each write: not even formatted
