package intake_test

import (
	"errors"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

func isPermanent(err error) bool { return errors.Is(err, &fault.Error{Kind: fault.Permanent}) }
