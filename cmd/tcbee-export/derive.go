// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// derived tells what a tool made of a spool, or why it could not.
func (a *app) derived(d pipeline.Derived, err error) error {
	if err != nil {
		if exitCode(err) != codeUsage {
			err = spoolError(d.Dir, err)
		}
		return errors.Join(err, damageError(d.Damaged))
	}
	if a.json {
		err = printJSON(a.stdout, d)
	} else if d.Events == 0 {
		_, err = fmt.Fprintf(a.stdout, "%s: holds no events: nothing of %s matches\n", d.Dir, count(d.Source.Events))
	} else {
		_, err = fmt.Fprintf(a.stdout, "%s: %s of %s events, %d sessions, %s to %s, %d blocks, %s\n", d.Dir, count(d.Events), count(d.Source.Events),
			d.Sessions, timeText(d.Start), timeText(d.End), d.Blocks, bytesText(d.Bytes))
	}
	return errors.Join(err, damageError(d.Damaged))
}
