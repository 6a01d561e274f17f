// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package demo

import (
	"context"
	"errors"
)

func live(context.Context, Options, string, network) error {
	return cannotCapture{errors.New("capturing needs Linux")}
}
