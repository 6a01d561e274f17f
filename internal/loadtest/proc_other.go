// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package loadtest

func processCPU() float64 { return 0 }
func rssAnon() uint64     { return 0 }
