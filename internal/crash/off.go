//go:build !crashpoints

package crash

// At is a point.
func At(Point) {}

// In is a point that is passed in several states.
func In(Point, string) {}
