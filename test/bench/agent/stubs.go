package main

import (
	"context"
	"errors"
)

func benchLab(ctx context.Context, e *env) (report, error) { return report{}, errors.New("x") }
