"""In-memory backends and faulty disks, for tests of the server and of programs that embed it."""
