from shared.db.env import run

run()
