package agent

// trusted leaves the question to the folder's access list.
func trusted(string) error { return nil }
