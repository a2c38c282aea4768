# The bucket with the states, and who may reach it from outside.
